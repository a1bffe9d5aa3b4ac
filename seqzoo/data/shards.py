"""Prepared corpora: a folder of memory-mapped shards, and a manifest that says what must be in it.

    manifest.json             `Manifest`: settings, counts and SHA-256 of everything
    train-00000.tokens.npy    [n] uint8, uint16 or uint32, the smallest that holds the vocabulary
    train-00000.starts.npy    [documents] int64: where in the shard each document starts
    held_out-00000...
    tokenizer.json            the Hugging Face tokenizer, if there is one

A document is stored as its separator and its tokens, and a split ends with one more separator: the target of token i is token i + 1
for all but the last, so that every token of a document is predicted once, the first one and the end included. A separator stands
nowhere else. A shard holds whole documents.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from seqzoo.data.atomic_io import atomic_write
from seqzoo.data.errors import DataError

FORMAT = "seqzoo corpus"
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # the manifest of a corpus that is still being prepared
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "held_out")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(_Model):
    """What decides every byte of a prepared corpus, but for the files' contents."""

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
        """Which differ, as "held_out is 0.05 there, 0.1 here"."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return [f"{name} is {a!r} there, {b!r} here" for name, a, b in pairs if a != b]


class StoredFile(_Model):
    """A file as it must be."""

    name: str
    bytes: int
    sha256: str


class Shard(_Model):
    """Some documents of a split, in order."""

    tokens: int  # separators included
    documents: int
    text_bytes: int
    tokens_file: StoredFile
    starts_file: StoredFile

    @property
    def files(self) -> tuple[StoredFile, StoredFile]:
        """Both."""
        return self.tokens_file, self.starts_file


class Split(_Model):
    """The shards of a split; `sha256` is that of all its tokens in a row, little-endian in the shards' dtype."""

    shards: tuple[Shard, ...] = ()
    sha256: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens in all, separators included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents in all."""
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """Bytes of the documents' text."""
        return sum(shard.text_bytes for shard in self.shards)


class Manifest(_Model):
    """What a folder of shards must hold."""

    format: Literal["seqzoo corpus"] = FORMAT
    version: Literal[1] = 1
    settings: Settings
    skipped: int = 0  # binary files left out
    train: Split = Split()
    held_out: Split = Split()
    sha256: str | None = None  # of the corpus: `total`

    def split(self, name: str) -> Split:
        """The split of that name."""
        return getattr(self, name)


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder holds a prepared corpus, finished or not, whatever its state."""
    for name in (MANIFEST, UNFINISHED):
        path = Path(folder).expanduser() / name
        if path.is_file():
            with path.open("rb") as file:
                return FORMAT.encode() in file.read(100)
    return False


def dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds the tokens, little-endian."""
    bits = next(bits for bits in (8, 16, 32) if vocab_size <= 2**bits)
    return np.dtype(f"<u{bits // 8}")


def total(tokenizer: str, splits: Iterable[str]) -> str:
    """SHA-256 of a corpus from those of its tokenizer and of its splits' tokens: the same however it is cut into shards."""
    return hashlib.sha256("\n".join((tokenizer, *splits)).encode()).hexdigest()


def summed(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of complete shards with the hashes of the splits and of the whole. Reads every token."""
    sums = {name: sha256(tokens(folder, manifest, name)) for name in SPLITS}
    splits = {name: manifest.split(name).model_copy(update={"sha256": sums[name]}) for name in SPLITS}
    return manifest.model_copy(update={**splits, "sha256": total(manifest.settings.tokenizer_sha256, sums.values())})


def write(folder: Path, name: str, tokens: np.ndarray, starts: np.ndarray, text_bytes: int) -> Shard:
    """Writes a shard: `name`.tokens.npy and `name`.starts.npy, each whole or not at all."""
    return Shard(
        tokens=len(tokens),
        documents=len(starts),
        text_bytes=text_bytes,
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
    """Reads a manifest, and checks that it is one of ours and of a version that we know."""
    path = Path(folder).expanduser() / name
    if not path.is_file():
        if name == MANIFEST and path.with_name(UNFINISHED).is_file():
            raise DataError(f"{folder} is not prepared to its end; run the same `train.py prepare` again, and it goes on")
        raise DataError(f"{folder} is no prepared corpus: it has no {name}")
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") != 1:
            raise DataError(
                f"{path} has version {found.get('version')!r}, wanted 1: prepare the corpus again, or use a newer seqzoo"
            )
        return Manifest.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path} is no manifest of ours, or damaged: {where}: {problem['msg']}; prepare the corpus again") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged (not JSON: {error}); prepare the corpus again") from None


def verify(folder: str | Path, manifest: Manifest, *, contents: bool = True, alone: bool = True) -> None:
    """Checks that a folder holds the manifest's files, whole and unchanged.

    Args:
      folder: of the corpus.
      manifest: what must be in it.
      contents: whether to compare SHA-256 too, for which every byte is read; if not: sizes only.
      alone: whether other shards beside them are refused.
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
            raise DataError(f"{path} is foreign: {folder / MANIFEST} does not name it. Remove it, or prepare the corpus again")


def tokens(folder: str | Path, manifest: Manifest, split: str) -> list[np.ndarray]:
    """The tokens of each shard of a split, memory-mapped."""
    wanted = dtype(manifest.settings.vocab_size)
    return [_mapped(folder, shard.tokens_file, wanted, shard.tokens) for shard in manifest.split(split).shards]


def starts(folder: str | Path, manifest: Manifest, split: str) -> np.ndarray:
    """[documents] int64: where in a split each document starts."""
    parts, begin = [np.zeros(0, np.int64)], 0
    for shard in manifest.split(split).shards:
        parts.append(begin + _mapped(folder, shard.starts_file, np.dtype("<i8"), shard.documents))
        begin += shard.tokens
    return np.concatenate(parts)


def _mapped(folder: str | Path, file: StoredFile, wanted: np.dtype, count: int) -> np.ndarray:
    path = Path(folder).expanduser() / file.name
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no array of numbers: {error}") from None
    if array.dtype != wanted or array.shape != (count,):
        raise DataError(f"{path} holds {array.dtype} {list(array.shape)}, wanted {wanted} [{count}]: it belongs to another corpus")
    return array


def sha256(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of arrays, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
