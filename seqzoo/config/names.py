"""Names of run folders: one component of a path that every file system takes, and shells do not mistake for an option."""

import hashlib

MOST_BYTES = 240  # a file system takes 255; a number may follow the name
DIGITS = 8  # of the digest that ends a shortened name


def check_name(name: str) -> str:
    """The name, if it is safe as that of one folder.

    Raises:
      ValueError: empty, ".", "..", too long, with "-" in front, or with a slash, a backslash, a control character or half of a
        surrogate pair.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r}: wanted the name of one folder; its parent is run.folder")
    if not name.isprintable():
        raise ValueError(f"{name!r}: wanted a name without control characters")
    if name.startswith("-"):
        raise ValueError(f"{name!r}: wanted a name that does not begin with '-', as options do")
    if (size := len(name.encode())) > MOST_BYTES:
        raise ValueError(f"{name[:40]!r}... has {size} bytes; wanted at most {MOST_BYTES}")
    return name


def shortened(name: str, most: int = MOST_BYTES) -> str:
    """The name, or its beginning and a digest of all of it, so that it has at most `most` bytes and differs from other names."""
    if len(name.encode()) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:DIGITS]
    return f"{name.encode()[: most - DIGITS - 1].decode(errors='ignore')}-{digest}"
