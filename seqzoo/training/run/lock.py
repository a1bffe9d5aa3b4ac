"""The lock of a run folder: one process at a time trains in it.

Two would remove each other's unfinished checkpoints and write every line of the metrics twice.
"""

import os
import socket
import time
from pathlib import Path
from typing import IO

from seqzoo.data.atomic_io import error_reason, write_errors
from seqzoo.data.json_files import refuse_irregular
from seqzoo.data.lock import flock

LOCK = "lock"


class LockedError(RuntimeError):
    """Another process trains in the run folder. The message names it."""


class RunLock:
    """The lock of one folder. The kernel releases it when the process ends, also when it is killed; the file stays.

    The file says who holds it. Where the file system has no locks, `note` says so, and training goes on without one.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self.note: str | None = None
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock. Raises LockedError if another process has it, WriteError if its file cannot be written."""
        with write_errors(self.path):
            if self.path.exists():
                refuse_irregular(self.path)
            file = self.path.open("a+", encoding="utf-8")
        try:
            flock(file.fileno())
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise LockedError(f"{self.path.parent} is in use by {holder}; wanted a folder where no other process trains") from None
        except OSError as error:
            file.close()
            self.note = f"{self.path} cannot be locked ({error_reason(error)}): let no other process train in this folder"
            return
        self._file = file
        with write_errors(self.path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()

    def release(self) -> None:
        """Gives the lock back, if it was taken."""
        if self._file is not None:
            self._file.close()
            self._file = None
