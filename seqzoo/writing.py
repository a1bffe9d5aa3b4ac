"""Writing so that a full disk, a read-only folder or a killed process costs nothing that was complete.

Whole files come by way of a neighbour and a rename. Whatever fails to be written becomes one error, `WriteError`.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


class WriteError(RuntimeError):
    """Something could not be written. The message names the path and the system's reason; what was complete before still is."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which the system's refusals are refusals to write `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the system said: "No space left on device". Of a library's error without such, the first line."""
    number = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way to say it, at the end of a long line
    if number:
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """A context that writes a file by way of a neighbour and a rename: readers see the old or the new one, never a half.

    Raises:
      WriteError: the system refuses; the old file, if there was one, is as before.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first refusal is the one to tell
                temporary.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8."""
    with write_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(Path(path), json.dumps(value, indent=2) + "\n")


def remove_halves(folder: Path) -> None:
    """Removes what `write_whole` left beside its files in processes that were killed."""
    for path in folder.glob("*.[0-9]*.tmp"):
        with writing(path):
            path.unlink(missing_ok=True)
