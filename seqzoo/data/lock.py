"""Locks of files and folders, which the kernel releases when the process that holds them ends, also when it is killed."""


def flock(handle: int) -> None:
    """Locks an open file or folder.

    Raises BlockingIOError if another process holds the lock, another OSError where there are no locks.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError("Windows has no flock") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
