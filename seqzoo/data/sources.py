"""Which files a corpus is made of, and the documents in them, always in the same order.

A source is a word, or several, separated by commas or in a tuple (where a path may hold a comma):

    stdlib                the *.py files of the running Python's standard library, without its tests, installed packages and
                          pydoc_data, which is the manual's text
    FOLDER                every file under it, but for hidden ones (a leading dot, also of a folder on the way), links to folders,
                          second links to a file, and those that are compressed or binary (a zero byte among the first 8000,
                          which is git's rule); the last two are counted
    "FOLDER/*.txt"        a glob; ** goes through folders, * matches no hidden file
    FILE                  one file

What a glob or a path names is taken as it is, binary or not; only compressed files are refused. A .jsonl file holds one document a
line, a .parquet file one a row; every other file is one document. Documents are bytes.
"""

import contextlib
import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seqzoo.data.atomic_io import error_reason
from seqzoo.data.errors import DataError
from seqzoo.specs import did_you_mean

STDLIB = "stdlib"
# Folders of the standard library that are left out: not of it, or not in every Python, or English in one literal of 800 kB.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
HEAD = 8000  # bytes in which a zero means "binary": buffer_is_binary of git's xdiff-interface.c
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"}


class File(NamedTuple):
    """One file of a source."""

    path: Path
    key: str  # its path below the source's root, with slashes: decides the split, so that it does not change when files are added
    label: str  # the key, after the source's word where there are several: unique in a corpus
    found: bool  # in a folder, not named by path or glob


class Document(NamedTuple):
    """One document of a file."""

    file: File
    row: int | None  # line or row, counted from 1; None where the file is the document
    text: bytes
    share: float  # bytes of its file that it stands for, to show progress

    @property
    def place(self) -> str:
        """Where it is, for messages: "corpus.jsonl, line 3"."""
        if self.row is None:
            return str(self.file.path)
        return f"{self.file.path}, {'row' if self.file.path.suffix.lower() == '.parquet' else 'line'} {self.row}"

    def split(self, held_out: float) -> str:
        """Which split it belongs to: "held_out" if the SHA-256 of its key, read as a number in [0, 1), is below `held_out`.

        The key is the file's path below the source's root, and for rows also their number: adding files, or rows at the end, moves
        nothing, and a larger share only adds.
        """
        key = self.file.key if self.row is None else f"{self.file.key}#{self.row}"
        digest = hashlib.sha256(os.fsencode(key)).digest()
        return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"


def words(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """The words of a source. Raises DataError if there is none."""
    found = tuple(filter(None, map(str.strip, source.split(",")))) if isinstance(source, str) else tuple(source)
    if not found or not all(isinstance(word, str) and word for word in found):
        raise DataError(f"source={source!r}, wanted {STDLIB!r}, a folder, a glob, a file, or several of these")
    return found


def check(source: str | tuple[str, ...]) -> None:
    """Raises DataError if a word of the source names nothing. Reads no file and lists no folder but those of globs."""
    for word in words(source):
        if folder(word) is None and not _matches(word):
            _nothing(word)


def folder(word: str) -> Path | None:
    """The folder that a word means to be searched through, or None if it means none."""
    path = Path(sysconfig.get_path("stdlib")) if word == STDLIB else Path(word).expanduser()
    return path if path.is_dir() else None


def files(source: str | tuple[str, ...]) -> list[File]:
    """The files of a source: word by word, and for each in the order of their keys.

    Raises:
      DataError: a word names nothing, a folder cannot be read, or a file is named twice.
    """
    several = len(words(source)) > 1
    if len(set(words(source))) < len(words(source)):
        raise DataError(f"source={source!r} names the same twice; wanted each file once")
    taken: dict[Path, tuple[str, Path]] = {}
    listed = []
    for word in words(source):
        for path, root in _listed(word):
            where, other = taken.setdefault(path.resolve(), (word, path))
            if where != word:
                raise DataError(f"{word!r} names {path}, which {where!r} names too; wanted each file once")
            if other == path:  # else it is a link to a file of the same folder
                key = path.relative_to(root).as_posix()
                listed.append(File(path, key, f"{word}:{key}" if several else key, folder(word) is not None))
    return listed


def listing(found: list[File]) -> str:
    """SHA-256 of the files' labels and sizes: cheap to take, and different if a file was added, removed or cut."""
    lines = "".join(f"{file.label}\t{_size(file)}\n" for file in found)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def size(found: list[File]) -> int:
    """Bytes of all files together."""
    return sum(map(_size, found))


def check_share(held_out: float) -> None:
    """Raises DataError unless it is a share of documents to hold out, in [0, 1)."""
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 <= held_out < 1:
        raise DataError(f"held_out={held_out!r}, wanted a number in [0, 1): the share of documents that is held out")


def check_splits(source: tuple[str, ...], held_out: float, train: int, held: int) -> None:
    """Raises DataError if a split that there should be has got no document."""
    named = ", ".join(source)
    if not train:
        raise DataError(
            f"{named}: none of {held} documents is left for training; wanted more documents, or held_out below {held_out}"
        )
    if held_out and not held:
        raise DataError(
            f"{named}: held_out={held_out} holds none of {train} documents out, as only whole ones are; wanted more documents, a "
            f"larger share, or 0"
        )


class Documents:
    """The documents of some files, in order; `skipped` counts the binary files left out so far.

    Args:
      found: from `files`.
      field: the field of .jsonl objects, and the column of .parquet files, that holds the text.
    Raises (while iterating):
      DataError: a file, named with the line or row, cannot be read or parsed, or has no such field, or one that holds no text.
    """

    def __init__(self, found: list[File], field: str = "text"):
        self.files = found
        self.field = field
        self.skipped = 0

    def __iter__(self) -> Iterator[Document]:
        self.skipped = 0
        for file in self.files:
            with _reading(file.path):
                suffix = file.path.suffix.lower()
                if suffix == ".jsonl":
                    yield from self._lines(file)
                elif suffix == ".parquet":
                    yield from self._rows(file)
                else:
                    yield from self._whole(file)

    def _whole(self, file: File) -> Iterator[Document]:
        compressed = file.path.suffix.lower() in COMPRESSED
        with file.path.open("rb") as stream:
            head = stream.read(HEAD)
            if file.found and (compressed or b"\0" in head):
                self.skipped += 1
                return
            if compressed:
                raise DataError(f"{file.path} is compressed; wanted plain text, .jsonl or .parquet: unpack it first")
            text = head + stream.read()
        yield Document(file, None, text, len(text))

    def _lines(self, file: File) -> Iterator[Document]:
        with file.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.isspace():  # a last empty line is common, and no document
                    continue
                document = Document(file, number, b"", len(line))
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{document.place}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{document.place}: wanted an object with the field {self.field!r}, found {_shown(row)}")
                if self.field not in row:
                    raise DataError(f"{document.place}: {self._no_field(row)}")
                yield self._filled(document, row[self.field])

    def _rows(self, file: File) -> Iterator[Document]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(f"{file.path}: reading .parquet needs pyarrow: pip install 'seqzoo[text]'") from None
        try:
            with parquet.ParquetFile(file.path) as table:
                columns = table.schema_arrow.names
                if self.field not in columns:
                    raise DataError(f"{file.path}: {self._no_field(columns)}")
                share = _size(file) / max(1, table.metadata.num_rows)
                number = 0
                for batch in table.iter_batches(batch_size=256, columns=[self.field]):
                    for value in batch.column(0):
                        number += 1
                        yield self._filled(Document(file, number, b"", share), value.as_py())
        except pyarrow.ArrowException as error:
            raise DataError(f"{file.path} is no Parquet file, or damaged: {(str(error).splitlines() or [''])[0]}") from None

    def _filled(self, document: Document, value: Any) -> Document:
        """The document with the field's value as its text."""
        if isinstance(value, str):
            try:
                value = value.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{document.place}: field {self.field!r} is no valid text ({error.reason})") from None
        if not isinstance(value, bytes):
            raise DataError(f"{document.place}: field {self.field!r} is {_shown(value)}, wanted text")
        return document._replace(text=value)

    def _no_field(self, known) -> str:
        names = ", ".join(map(str, known)) or "none"
        return f"no field is called {self.field!r}.{did_you_mean(self.field, map(str, known))} Fields: {names}; `field` chooses"


def _matches(word: str) -> list[Path]:
    """The files that a path or a glob names."""
    path = Path(word).expanduser()
    if path.is_file():
        return [path]
    if word == STDLIB or not glob.has_magic(word):
        return []
    return [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]


def _listed(word: str) -> list[tuple[Path, Path]]:
    """(path, root) of each file that a word means, in the order of the paths below the root."""
    root = folder(word)
    if root is not None:
        left_out = LEFT_OUT if word == STDLIB else set()
        paths = [path for path in _under(root, left_out) if word != STDLIB or path.suffix == ".py"]
    else:
        paths = _matches(word)
        root = _fixed(Path(word).expanduser())
    if not paths:
        _nothing(word)
    return [(path, root) for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix())]


def _under(root: Path, left_out: set[str]) -> Iterator[Path]:
    """The files under a folder, hidden ones and links to folders left out."""

    def refuse(error):
        raise DataError(f"cannot read {error.filename}: {error_reason(error)}") from None

    for inside, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        yield from (path for name in names if not name.startswith(".") and (path := Path(inside, name)).is_file())


def _fixed(path: Path) -> Path:
    """The folder of a file, or the part of a glob before its first wildcard."""
    parts = [part for part in path.parents if not glob.has_magic(str(part))]
    return parts[0]


def _nothing(word: str) -> None:
    """Raises DataError for a word that names no file."""
    if word == STDLIB:
        raise DataError(f"{sysconfig.get_path('stdlib')} holds no .py file: this Python has no readable standard library")
    path = Path(word).expanduser()
    if path.is_dir():
        raise DataError(f"the folder {word} holds no file that is not hidden; wanted at least one")
    if glob.has_magic(word):
        raise DataError(f"no file matches {word!r}; wanted at least one")
    beside = [STDLIB, *(str(other) for other in path.parent.glob("*"))] if path.parent.is_dir() else [STDLIB]
    raise DataError(f"there is no file or folder {word!r}.{did_you_mean(word, beside)}")


def _size(file: File) -> int:
    with _reading(file.path):
        return file.path.stat().st_size


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A context in which the system's refusals are refusals to read `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error_reason(error)}") from None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:40]}..."
