"""Prepared corpora: a folder of shards, and the manifest of its files.

    manifest.json             `Manifest`: settings, counts and SHA-256 of everything
    train-00000.tokens.npy    [n] uint8, uint16 or uint32, the smallest that holds the vocabulary
    train-00000.starts.npy    [documents] int64: start of each document in the shard
    held_out-00000...
    tokenizer.json            the Hugging Face tokenizer, if there is one

A document is stored as its separator and its tokens, and a split ends with one more separator: the target of token i is token i + 1
for all except the last, so every token of a document is predicted once, its first token and its end included. A separator appears
nowhere else. A shard holds whole documents.
"""

import hashlib
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seqzoo.data.atomic_io import atomic_write
from seqzoo.data.errors import DataError
from seqzoo.data.json_files import DamagedFile, open_regular, read_json, refuse_irregular
from seqzoo.data.sources import read_errors
from seqzoo.entry import program

FORMAT = "seqzoo corpus"
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # the manifest of a corpus that is still being prepared
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "held_out")
BLOCK = 2**22  # tokens that are read at once to compute a digest


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Model):
    """Everything that decides the bytes of a prepared corpus, except the contents of the files."""

    source: tuple[str, ...]
    files: int
    listing: str  # sources.listing of the files
    field: str
    held_out: float
    tokenizer: str  # "bytes" or "tokenizer.json"
    tokenizer_sha256: str
    separator: int
    separator_token: str | None  # as the tokenizer.json writes it
    vocab_size: int
    shard_tokens: int

    def differences(self, other: "Settings") -> list[str]:
        """The settings that differ: ["held_out is 0.05 there, 0.1 here", ...]."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [f"{name} is {a!r} there, {b!r} here" for name, a, b in pairs if a != b]


class StoredFile(_Model):
    """Name, size and hash of a file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]*\w$")]  # in the folder of the manifest
    bytes: int
    sha256: str


class Shard(_Model):
    """Consecutive documents of a split."""

    tokens: int  # separators included
    documents: int
    text_bytes: int
    text_sha256: str  # of the documents' texts, each after its length: `TextDigest`
    unknown: int = 0  # tokens that stand for text outside the vocabulary
    tokens_file: StoredFile
    starts_file: StoredFile

    @property
    def files(self) -> tuple[StoredFile, StoredFile]:
        """Tokens file and starts file."""
        return self.tokens_file, self.starts_file


class Split(_Model):
    """The shards of a split; `sha256` is the hash of all its tokens, little-endian in the shards' dtype."""

    shards: tuple[Shard, ...] = ()
    sha256: str | None = None

    @property
    def tokens(self) -> int:
        """Total number of tokens, separators included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Total number of documents."""
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Bytes of the documents' text."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def unknown(self) -> int:
        """Tokens that stand for text outside the tokenizer's vocabulary."""
        return sum(shard.unknown for shard in self.shards)


class Manifest(_Model):
    """The contents of a folder of shards."""

    format: Literal["seqzoo corpus"] = FORMAT
    version: Literal[1] = 1
    settings: Settings
    skipped: int = 0  # number of skipped binary files
    train: Split = Split()
    held_out: Split = Split()
    sha256: str | None = None  # of the corpus: `corpus_sha256`

    def split(self, name: str) -> Split:
        """The split of that name."""
        return getattr(self, name)


def is_prepared(folder: str | Path) -> bool:
    """True if a folder holds a prepared corpus, finished or not."""
    for name in (MANIFEST, UNFINISHED):
        path = Path(folder).expanduser() / name
        with read_errors(path):
            if path.is_file():
                with path.open("rb") as file:
                    return FORMAT.encode() in file.read(100)
    return False


def dtype(vocab_size: int) -> np.dtype:
    """The smallest little-endian unsigned type that holds the tokens."""
    bits = next(bits for bits in (8, 16, 32) if vocab_size <= 2**bits)
    return np.dtype(f"<u{bits // 8}")


def corpus_sha256(tokenizer: str, splits: Iterable[str]) -> str:
    """SHA-256 of a corpus from the hashes of its tokenizer and of its splits' tokens; independent of the shard size."""
    return hashlib.sha256("\n".join((tokenizer, *splits)).encode()).hexdigest()


def with_hashes(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the hashes of the splits and of the corpus. Reads every token."""
    sums = {name: sha256(tokens(folder, manifest, name)) for name in SPLITS}
    splits = {name: manifest.split(name).model_copy(update={"sha256": sums[name]}) for name in SPLITS}
    return manifest.model_copy(update={**splits, "sha256": corpus_sha256(manifest.settings.tokenizer_sha256, sums.values())})


class TextDigest:
    """The SHA-256 of some documents' texts, each after its length, so that it depends on the borders between them."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, text: bytes) -> None:
        """Adds a document."""
        self._digest.update(len(text).to_bytes(8, "little"))
        self._digest.update(text)

    def __str__(self):
        return self._digest.hexdigest()


def write(
    folder: Path, name: str, tokens: np.ndarray, starts: np.ndarray, *, text_bytes: int, text_sha256: str, unknown: int
) -> Shard:
    """Writes a shard atomically: `name`.tokens.npy and `name`.starts.npy."""
    return Shard(
        tokens=len(tokens),
        documents=len(starts),
        text_bytes=text_bytes,
        text_sha256=text_sha256,
        unknown=unknown,
        tokens_file=_write(folder / f"{name}.tokens.npy", tokens),
        starts_file=_write(folder / f"{name}.starts.npy", starts.astype("<i8")),
    )


def _write(path: Path, array: np.ndarray) -> StoredFile:
    with atomic_write(path) as file:
        np.save(file, array)
    return StoredFile(name=path.name, bytes=path.stat().st_size, sha256=_sha256(path))


def write_manifest(folder: Path, name: str, manifest: Manifest) -> None:
    """Writes a manifest under that name."""
    with atomic_write(folder / name) as file:
        file.write(manifest.model_dump_json(indent=2).encode() + b"\n")


def read_manifest(folder: str | Path, name: str = MANIFEST) -> Manifest:
    """Reads a manifest, and checks its format and version."""
    path = Path(folder).expanduser() / name
    if not path.is_file():
        if name == MANIFEST and path.with_name(UNFINISHED).is_file():
            raise DataError(f"{folder} is not completely prepared; run the same `{program()} prepare` again to continue")
        raise DataError(f"{folder} is not a prepared corpus: it has no {name}")
    try:
        found = read_json(path)
        if found.get("format") == FORMAT and found.get("version") != 1:
            raise DataError(
                f"{path} has version {found.get('version')!r}, wanted 1: prepare the corpus again, or use a newer seqzoo"
            )
        return Manifest.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{path} is not a manifest of seqzoo, or damaged: {where}: {problem['msg']}; prepare the corpus again"
        ) from None
    except DamagedFile as error:
        raise DataError(f"{error}; prepare the corpus again") from None


def verify(folder: str | Path, manifest: Manifest, *, contents: bool = True, alone: bool = True) -> None:
    """Checks that a folder holds the files of the manifest, complete and unchanged.

    Args:
      folder: of the corpus.
      manifest: what must be in it.
      contents: compare SHA-256, which reads every byte; False: compare sizes only.
      alone: refuse other shards in the folder.
    Raises:
      DataError: a file is missing, truncated, longer, changed, or belongs to another corpus. By name.
    """
    folder = Path(folder).expanduser()
    wanted = [file for name in SPLITS for shard in manifest.split(name).shards for file in shard.files]
    for file in wanted:
        path = folder / file.name
        if not path.is_file():
            raise DataError(f"{path} is missing. Restore it, or prepare the corpus again")
        if (size := path.stat().st_size) != file.bytes:
            how = "truncated" if size < file.bytes else "too long"
            raise DataError(f"{path} is {how}: {size} bytes, wanted {file.bytes}. Restore it, or prepare the corpus again")
        if contents and (found := _sha256(path)) != file.sha256:
            raise DataError(
                f"{path} is not what was prepared: its SHA-256 is {found}, wanted {file.sha256}. Restore it, or prepare the corpus "
                "again"
            )
    for path in sorted(folder.glob("*.npy")) if alone else ():
        if path.name not in {file.name for file in wanted}:
            raise DataError(
                f"{path} does not belong to this corpus: {folder / MANIFEST} does not list it. Remove it, or prepare again"
            )


class TokenFile:
    """The tokens of a shard, read by slices: `file[a:b]`. Several threads may read at once.

    Plain reads instead of a memory mapping: with one, a file that is truncated while a run reads it ends the process (SIGBUS), and
    one that is overwritten gives other tokens without a word.

    Raises (while reading):
      DataError: the file changed since it was opened, or a token is outside the vocabulary. By name.
    """

    def __init__(self, path: Path, wanted: np.dtype, count: int, vocab_size: int):
        self.path, self.dtype, self._count, self._vocab_size = path, wanted, count, vocab_size
        array = _load(path, wanted, count)
        self._begin = int(array.offset)  # the header of the format comes first
        with open_regular(path) as file:
            self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)
        self._stamp = self._look()

    def __len__(self):
        return self._count

    def __getitem__(self, where: slice) -> np.ndarray:
        begin, end, _ = where.indices(self._count)
        size = self.dtype.itemsize
        data = os.pread(self._handle, max(0, end - begin) * size, self._begin + begin * size)
        if self._look() != self._stamp or len(data) != max(0, end - begin) * size:
            raise DataError(
                f"{self.path} was changed while it was read; wanted it as prepared: restore it, or prepare the corpus again"
            )
        found = np.frombuffer(data, self.dtype)
        if len(found) and found.max() >= self._vocab_size:
            at = int(np.argmax(found >= self._vocab_size))
            found = f"{self.path} holds the token {found[at]} at place {begin + at}"
            raise DataError(f"{found}, wanted less than the vocabulary's {self._vocab_size}: prepare the corpus again")
        return found

    def _look(self) -> tuple[int, int]:
        stat = os.fstat(self._handle)
        return stat.st_size, stat.st_mtime_ns


def tokens(folder: str | Path, manifest: Manifest, split: str) -> list[TokenFile]:
    """The tokens of each shard of a split."""
    folder, size = Path(folder).expanduser(), manifest.settings.vocab_size
    return [TokenFile(folder / shard.tokens_file.name, dtype(size), shard.tokens, size) for shard in manifest.split(split).shards]


def starts(folder: str | Path, manifest: Manifest, split: str) -> np.ndarray:
    """[documents] int64: start of each document in a split."""
    folder, parts, begin = Path(folder).expanduser(), [np.zeros(0, np.int64)], 0
    for shard in manifest.split(split).shards:
        parts.append(begin + _load(folder / shard.starts_file.name, np.dtype("<i8"), shard.documents))
        begin += shard.tokens
    return np.concatenate(parts)


def _load(path: Path, wanted: np.dtype, count: int) -> np.memmap:
    try:
        refuse_irregular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not an array of numbers: {error}") from None
    if array.dtype != wanted or array.shape != (count,):
        raise DataError(f"{path} holds {array.dtype} {list(array.shape)}, wanted {wanted} [{count}]: it belongs to another corpus")
    return array


def sha256(arrays: Iterable[np.ndarray | TokenFile]) -> str:
    """SHA-256 of the arrays, concatenated."""
    digest = hashlib.sha256()
    for array in arrays:
        for begin in range(0, len(array), BLOCK):
            digest.update(np.ascontiguousarray(array[begin : begin + BLOCK]).data)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
