"""Claims: of many processes on one comparison, the one that holds the claim of a run trains it.

A claim is a lock of the file claims/NAME in the comparison's folder. The kernel releases it when the process ends, also by kill -9,
so a run never waits for a dead process. The file says who holds it, and is emptied when the claim is given back: text in an
unlocked file was left by a process that was killed, and the run is taken over from its latest checkpoint. Where the file system
has no locks, every claim succeeds, and `locked` is False: processes then share the runs by `shard` alone.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from seqzoo.data.atomic_io import write_errors
from seqzoo.data.json_files import refuse_irregular
from seqzoo.data.lock import flock

CLAIMS = "claims"
CRASHES = 3  # so many processes in a row that were killed with no checkpoint between them: the run is not tried again


class Claim:
    """The claim of one run, held until `release`.

    Attributes:
      locked: False where the file system has no locks.
      before: the process that held it last and was killed, in words; "" if none was.
      crashes: processes in a row that were killed while they held it, and had saved no further step than those before them.
    """

    def __init__(self, file: IO[str], locked: bool, step: int):
        self._file, self.locked = file, locked
        left = _left(file) if locked else {}
        self.before = f"process {left['process']} on {left['host']}" if left else ""
        self.crashes = 0 if not left else 1 + (left["crashes"] if left["step"] >= step else 0)
        now = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._write(json.dumps(now | {"crashes": self.crashes, "step": step}) + "\n")

    def release(self) -> None:
        """Gives the claim back."""
        self._write("")
        self._file.close()

    def _write(self, text: str) -> None:
        with write_errors(Path(self._file.name)):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)
            self._file.flush()


def claim(folder: Path, name: str, step: int) -> Claim | None:
    """Claims a run of the comparison in `folder`; None if another process has it.

    Args:
      folder: of the comparison.
      name: of the run.
      step: of its latest checkpoint, or -1.
    Raises:
      WriteError: the file cannot be written.
    """
    path = folder / CLAIMS / name
    with write_errors(path):
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            refuse_irregular(path)
        file = path.open("a+", encoding="utf-8", errors="replace")
    locked = True
    try:
        flock(file.fileno())
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        locked = False
    return Claim(file, locked, step)


def holder(folder: Path, name: str) -> int | None:
    """The number of the process that holds the claim of a run, or was killed with it; None if there is none."""
    try:
        with (folder / CLAIMS / name).open(encoding="utf-8", errors="replace") as file:
            return _left(file).get("process")
    except OSError:
        return None


def _left(file: IO[str]) -> dict[str, Any]:
    """The holder that a file names; {} if it names none."""
    file.seek(0)
    try:
        found = json.loads(file.read(10_000))
    except ValueError:
        return {}
    kinds = {"process": int, "host": str, "crashes": int, "step": int}
    return found if isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items()) else {}
