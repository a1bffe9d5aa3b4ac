"""Atomic, durable file writes: a full disk, a killed process or a power cut never damages a complete file.

A file is written under a temporary name in the same folder, synced to the disk, renamed, and then its folder is synced. Every
failure to write becomes one error, `WriteError`.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


class WriteError(RuntimeError):
    """A failed write. The message names the path and the system's reason; files that were complete stay complete."""


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Context that turns an OSError into a WriteError about `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error_reason(error)}") from error


def error_reason(error: Exception) -> str:
    """The system's reason, such as "No space left on device"; for an error of a library without one, its first line."""
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's form, at the end of a long line
    if number:
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Context that writes a file under a temporary name and renames it: readers see the old file or the new one, never a part.

    It is durable when the context ends: the new file survives a power cut.

    Raises:
      WriteError: the system refuses; an old file stays as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable: they survive a power cut. Raises OSError.

    Does nothing for a folder where the system has no such thing: on Windows, and on some network file systems.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Makes a folder durable with all that is in it. Raises OSError."""
    for path in folder.iterdir():
        sync_tree(path) if path.is_dir() else sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with `atomic_write`."""
    write_text(Path(path), json.dumps(value, indent=2) + "\n")


def remove_temporaries(folder: Path) -> None:
    """Removes the temporary files of `atomic_write` in processes that were killed."""
    for path in folder.glob("*.[0-9]*.tmp"):
        with write_errors(path):
            path.unlink(missing_ok=True)
