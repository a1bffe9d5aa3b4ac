"""Sources of a corpus: files, and the documents in them, always in the same order.

A source is one word, or several, separated by commas or in a tuple (there a path may contain a comma):

    stdlib                the *.py files of the running Python's standard library, without its tests, installed packages and
                          pydoc_data, which is the manual's text
    FOLDER                every file in it and below, except hidden files and folders (leading dot), links to folders, second
                          links to a file, and compressed or binary files (a zero byte in the first 8000, the rule of git); the
                          last two are counted
    "FOLDER/*.txt"        a glob; ** goes through folders, * matches no hidden file
    FILE                  one file

A file named by a glob or a path is read as it is, binary or not; only compressed files are refused. A .jsonl file holds one
document per line, a .parquet file one per row; every other file is one document. Documents are bytes.
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
from seqzoo.data.errors import DataError, UnreadableError
from seqzoo.specs import did_you_mean

STDLIB = "stdlib"
# Excluded folders of the standard library: installed packages, tests (not in every Python), and one literal of 800 kB of English.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
HEAD = 8000  # bytes in which a zero means "binary": buffer_is_binary of git's xdiff-interface.c
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz"}


class File(NamedTuple):
    """One file of a source."""

    path: Path
    key: str  # path below the root of the source, with slashes; decides the split, so adding files does not change it
    label: str  # the key, with the word of the source before it if there are several: unique in a corpus
    found: bool  # found in a folder, not named by path or glob


class Document(NamedTuple):
    """One document of a file."""

    file: File
    row: int | None  # line or row, counted from 1; None if the file is the document
    text: bytes
    file_bytes: float  # its part of the bytes of the file, for the progress bar

    @property
    def place(self) -> str:
        """Place in messages: "corpus.jsonl, line 3"."""
        if self.row is None:
            return str(self.file.path)
        return f"{self.file.path}, {'row' if self.file.path.suffix.lower() == '.parquet' else 'line'} {self.row}"

    def split(self, held_out: float) -> str:
        """The split of the document: "held_out" if the SHA-256 of its key, read as a number in [0, 1), is below `held_out`.

        The key is the path below the root of the source, with the number of a row. So adding files or rows moves no document to
        another split, and a larger fraction only adds documents.
        """
        key = self.file.key if self.row is None else f"{self.file.key}#{self.row}"
        digest = hashlib.sha256(os.fsencode(key)).digest()
        return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"


def split_source(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """The words of a source; DataError if there is none."""
    found = tuple(filter(None, map(str.strip, source.split(",")))) if isinstance(source, str) else tuple(source)
    if not found or not all(isinstance(word, str) and word for word in found):
        raise DataError(f"source={source!r}, wanted {STDLIB!r}, a folder, a glob, a file, or several of these")
    return found


def check(source: str | tuple[str, ...]) -> None:
    """Raises DataError if a word of the source names no file or folder. Reads no file, and lists only the folders of globs."""
    for word in split_source(source):
        if folder(word) is None and not _matching_files(word):
            _raise_not_found(word)


def folder(word: str) -> Path | None:
    """The folder that a word names, None if it names no folder."""
    path = Path(sysconfig.get_path("stdlib")) if word == STDLIB else Path(word).expanduser()
    with read_errors(path):
        return path if path.is_dir() else None


def files(source: str | tuple[str, ...]) -> list[File]:
    """The files of a source: word by word, sorted by key.

    Raises:
      DataError: a word names no file or folder, a folder cannot be read, or a file is named twice.
    """
    several = len(split_source(source)) > 1
    if len(set(split_source(source))) < len(split_source(source)):
        raise DataError(f"source={source!r} names the same twice; wanted each file once")
    taken: dict[Path, tuple[str, Path]] = {}
    listed = []
    for word in split_source(source):
        for path, root in _files_of(word):
            where, other = taken.setdefault(path.resolve(), (word, path))
            if where != word:
                raise DataError(f"{word!r} names {path}, which {where!r} names too; wanted each file once")
            if other == path:  # otherwise a link to a file of the same folder
                key = path.relative_to(root).as_posix()
                listed.append(File(path, key, f"{word}:{key}" if several else key, folder(word) is not None))
    return listed


def listing(found: list[File]) -> str:
    """SHA-256 of labels and sizes: cheap, and different after a file was added, removed or cut."""
    lines = "".join(f"{file.label}\t{_size(file)}\n" for file in found)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def size(found: list[File]) -> int:
    """Total bytes of the files."""
    return sum(map(_size, found))


def check_fraction(held_out: float) -> None:
    """Raises DataError unless it is a fraction in [0, 1)."""
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 <= held_out < 1:
        raise DataError(f"held_out={held_out!r}, wanted a number in [0, 1): the fraction of documents that is held out")


def check_splits(source: tuple[str, ...], held_out: float, train: int, held: int) -> None:
    """Raises DataError if a wanted split has no document."""
    named = ", ".join(source)
    if not train:
        raise DataError(
            f"{named}: none of {held} documents is left for training; wanted more documents, or held_out below {held_out}"
        )
    if held_out and not held:
        raise DataError(
            f"{named}: held_out={held_out} holds none of {train} documents out; wanted more documents, a larger fraction, or 0"
        )


class Documents:
    """The documents of files, in order; `skipped` counts the skipped binary files.

    Args:
      found: from `files`.
      field: field of .jsonl objects and column of .parquet files with the text.
    Raises (while iterating):
      DataError: a file cannot be read or parsed, has no such field, or no text in it. Named with the line or row.
    """

    def __init__(self, found: list[File], field: str = "text"):
        self.files = found
        self.field = field
        self.skipped = 0

    def __iter__(self) -> Iterator[Document]:
        self.skipped = 0
        for file in self.files:
            with read_errors(file.path):
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
                if line.isspace():  # a last empty line is common
                    continue
                document = Document(file, number, b"", len(line))
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{document.place}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{document.place}: wanted an object with the field {self.field!r}, found {_abbreviate(row)}")
                if self.field not in row:
                    raise DataError(f"{document.place}: {self._unknown_field(row)}")
                yield self._with_text(document, row[self.field])

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
                    raise DataError(f"{file.path}: {self._unknown_field(columns)}")
                row_bytes = _size(file) / max(1, table.metadata.num_rows)
                number = 0
                for batch in table.iter_batches(batch_size=256, columns=[self.field]):
                    for value in batch.column(0):
                        number += 1
                        yield self._with_text(Document(file, number, b"", row_bytes), value.as_py())
        except pyarrow.ArrowException as error:
            raise DataError(f"{file.path} is not a Parquet file, or damaged: {(str(error).splitlines() or [''])[0]}") from None

    def _with_text(self, document: Document, value: Any) -> Document:
        """The document with the value of the field as its text."""
        if isinstance(value, str):
            try:
                value = value.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{document.place}: field {self.field!r} is not valid text ({error.reason})") from None
        if not isinstance(value, bytes):
            raise DataError(f"{document.place}: field {self.field!r} is {_abbreviate(value)}, wanted text")
        return document._replace(text=value)

    def _unknown_field(self, known) -> str:
        names = ", ".join(map(str, known)) or "none"
        return f"no field is called {self.field!r}.{did_you_mean(self.field, map(str, known))} Fields: {names}; `field` chooses"


def _matching_files(word: str) -> list[Path]:
    """The files of a path or a glob."""
    path = Path(word).expanduser()
    with read_errors(path):
        if path.is_file():
            return [path]
    if word == STDLIB or not glob.has_magic(word):
        return []
    return [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]


def _files_of(word: str) -> list[tuple[Path, Path]]:
    """(path, root) of each file of a word, sorted by the path below the root."""
    root = folder(word)
    if root is not None:
        excluded = EXCLUDED if word == STDLIB else set()
        paths = [path for path in _files_under(root, excluded) if word != STDLIB or path.suffix == ".py"]
    else:
        paths = _matching_files(word)
        root = _root_of(Path(word).expanduser())
    if not paths:
        _raise_not_found(word)
    return [(path, root) for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix())]


def _files_under(root: Path, excluded: set[str]) -> Iterator[Path]:
    """The files below a folder, without hidden ones and links to folders."""

    def refuse(error):
        raise UnreadableError(f"cannot read {error.filename}: {error_reason(error)}") from None

    for inside, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in excluded]
        yield from (path for name in names if not name.startswith(".") and (path := Path(inside, name)).is_file())


def _root_of(path: Path) -> Path:
    """The folder of a file, or of the part of a glob before its first wildcard."""
    parts = [part for part in path.parents if not glob.has_magic(str(part))]
    return parts[0]


def _raise_not_found(word: str) -> None:
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
    with read_errors(file.path):
        return file.path.stat().st_size


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Context that turns an OSError into an UnreadableError about `path`."""
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error_reason(error)}") from None


def _abbreviate(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:40]}..."
