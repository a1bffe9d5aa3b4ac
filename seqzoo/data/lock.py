"""Locks of files and folders, which the kernel releases when the process that holds them ends, also when it is killed."""

import os
from pathlib import Path


def flock(handle: int) -> None:
    """Locks an open file or folder.

    Raises BlockingIOError if another process holds the lock, another OSError where there are no locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError("Windows has no flock") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Tells if a process holds the lock of a file; False where there is no such file, or there are no locks."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        flock(handle)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
