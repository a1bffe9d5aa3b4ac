"""Reading of our own JSON files. Damage becomes one error that names the file, never a traceback of the parser.

Only regular files are read, and only up to a size: a folder may come from a stranger, and a named pipe would be read for ever.
"""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

JSON_BYTES = 2**28  # of a file with one object, at most
LINES_BYTES = 2**32  # of a file with an object per line, at most
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


class DamagedFile(ValueError):
    """A file that does not hold what was written to it. The message names it, what was found and what was wanted."""


def read_json(path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `absent`, if given, where there is no such file.

    Raises:
      DamagedFile: the file holds something else. OSError: it cannot be read.
    """
    path = Path(path)
    if absent is not None and not path.exists():
        return absent
    return parse_object(_read(path, JSON_BYTES), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one JSON object per line; none where there is no such file.

    What follows the last line break is skipped: a process was killed while it wrote that line. NaN and Infinity are damage.
    Raises:
      DamagedFile: a line holds something else.
    """
    path = Path(path)
    whole, _, _ = _read(path, LINES_BYTES).rpartition(b"\n") if path.exists() else (b"", b"", b"")
    lines = enumerate(whole.split(b"\n") if whole else [], 1)
    return [parse_object(line, f"line {number} of {path}", strict=True) for number, line in lines]


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file to read its bytes; never waits for a named pipe.

    Raises:
      DamagedFile: a folder, a pipe, a device. OSError: it cannot be opened.
    """
    refuse_irregular(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was replaced in between
        file.close()
        raise DamagedFile(f"{path} is not a regular file, wanted one")
    return file


def refuse_irregular(path: Path) -> None:
    """Raises DamagedFile for a folder, a named pipe or a device in the place of a file; OSError if there is nothing."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        raise DamagedFile(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'a device')}, wanted a regular file")


def _read(path: Path, limit: int) -> bytes:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise DamagedFile(f"{path} has more than {limit:,} bytes, wanted a file as it was written")
        return file.read()


def parse_object(text: bytes, where: str, strict: bool = False) -> dict[str, Any]:
    """The JSON object in `text`; with `strict` without Python's NaN and Infinity, which are no JSON.

    Raises DamagedFile, whose message begins with `where`.
    """
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant if strict else None)
    except (ValueError, RecursionError) as error:  # invalid UTF-8 and invalid JSON are ValueErrors
        raise DamagedFile(f"{where} is damaged: wanted a JSON object, found {_shown(text)} ({error})") from None
    if not isinstance(found, dict):
        raise DamagedFile(f"{where} is damaged: wanted a JSON object, found {_shown(text)}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError if a key occurs twice: json would keep the last value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return made


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def require(found: dict[str, Any], where: str, **types: type | tuple[type, ...]) -> None:
    """Raises DamagedFile unless an object has these fields, with values of these types."""
    for name, kind in types.items():
        if not isinstance(found.get(name), kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            value = f"{name}={found[name]!r}"[:60] if name in found else f"no {name!r}"
            raise DamagedFile(f"{where} is damaged: {value}, wanted {name} of type {' or '.join(k.__name__ for k in kinds)}")


def _shown(text: bytes) -> str:
    return f"{text[:40]!r}{'...' if len(text) > 40 else ''}" if text.strip() else "nothing"
