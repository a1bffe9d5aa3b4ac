"""Reading of our own JSON files. Damage becomes one error that names the file, never a traceback of the parser."""

import json
from pathlib import Path
from typing import Any


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
    return parse_object(path.read_bytes(), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of one JSON object per line; none where there is no such file.

    What follows the last line break is skipped: a process was killed while it wrote that line.
    Raises:
      DamagedFile: a line holds something else.
    """
    path = Path(path)
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    return [parse_object(line, f"line {number} of {path}") for number, line in enumerate(whole.split(b"\n"), 1)] if whole else []


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises DamagedFile, whose message begins with `where`."""
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique)
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


def require(found: dict[str, Any], where: str, **types: type | tuple[type, ...]) -> None:
    """Raises DamagedFile unless an object has these fields, with values of these types."""
    for name, kind in types.items():
        if not isinstance(found.get(name), kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            value = f"{name}={found[name]!r}"[:60] if name in found else f"no {name!r}"
            raise DamagedFile(f"{where} is damaged: {value}, wanted {name} of type {' or '.join(k.__name__ for k in kinds)}")


def _shown(text: bytes) -> str:
    return f"{text[:40]!r}{'...' if len(text) > 40 else ''}" if text.strip() else "nothing"
