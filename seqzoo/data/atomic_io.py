"""Atomic file writes: a full disk, a read-only folder or a killed process never damages a complete file.

A file is written under a temporary name in the same folder, then renamed. Every failure to write becomes one error, `WriteError`.
"""

import contextlib
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

    Raises:
      WriteError: the system refuses; an old file stays as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise


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
