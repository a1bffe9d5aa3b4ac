"""A corpus, prepared on disk or read into memory: two streams of tokens, and the starts of their documents."""

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from seqzoo.data import shards, sources, tokenizers
from seqzoo.data.errors import DataError
from seqzoo.data.shards import SPLITS, Manifest
from seqzoo.data.sources import Document, Documents, File
from seqzoo.data.tokenizers import Bytes, Tokenizer
from seqzoo.entry import program

HELD_OUT = 0.05
FIELD = "text"
LIMIT = 2**28  # bytes; a larger source must be prepared


class Stream:
    """A sequence of token arrays as one, read by slices: `stream[a:b]`, 0 <= a <= b <= len(stream)."""

    def __init__(self, parts: Sequence[np.ndarray | shards.TokenFile]):
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, where: slice) -> np.ndarray:
        begin, end = where.start, where.stop
        if not 0 <= begin <= end <= len(self) or where.step is not None:
            raise IndexError(f"[{begin}:{end}] of {len(self)} tokens")
        pieces = list(self._pieces(begin, end))
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.uint8), *pieces])

    def _pieces(self, begin: int, end: int) -> Iterator[np.ndarray]:
        part = bisect_right(self.ends, begin)
        while begin < end:
            first = self.ends[part] - len(self.parts[part])
            yield self.parts[part][begin - first : end - first]
            begin, part = self.ends[part], part + 1


class Split:
    """One split of a corpus.

    Attributes:
      tokens: [separator, document, separator, document, ..., separator]; each token is the target of the one before it.
      documents: number of documents.
      text_bytes: bytes of their text.
      sha256: of the tokens.
    """

    def __init__(self, tokens: Stream, starts: Callable[[], np.ndarray], documents: int, text_bytes: int, sha256: str):
        self.tokens = tokens
        self.documents = documents
        self.text_bytes = text_bytes
        self.sha256 = sha256
        self._starts = starts

    @cached_property
    def starts(self) -> np.ndarray:
        """[documents] int64: position of each document's separator."""
        return self._starts()

    @property
    def targets(self) -> int:
        """Number of predicted tokens: all except the first."""
        return max(0, len(self.tokens) - 1)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document, its separator included."""
        return int(np.max(np.diff(self.starts, append=self.targets), initial=0))


class Corpus:
    """Two splits, "train" and "held_out", and their provenance.

    Attributes:
      splits: by name.
      separator: the token before every document.
      files: SHA-256 of each file of the source, or of each shard.
      skipped: number of skipped binary files.
      sha256: of everything; equal for a corpus in memory and prepared with any shard size.
    """

    def __init__(
        self,
        source: tuple[str, ...],
        splits: Mapping[str, Split],
        separator: int,
        tokenizer_sha256: str,
        files: Mapping[str, str],
        skipped: int,
    ):
        self.source = source
        self.splits = splits
        self.separator = separator
        self.files = files
        self.skipped = skipped
        self.tokenizer_sha256 = tokenizer_sha256
        self.sha256 = shards.corpus_sha256(tokenizer_sha256, (splits[name].sha256 for name in SPLITS))

    def fingerprint(self) -> dict[str, str]:
        """The hash, "sha256:...", of each file that the tokens come from, and of the tokenizer."""
        return {name: f"sha256:{value}" for name, value in {**self.files, "tokenizer": self.tokenizer_sha256}.items()}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Description of each split: {"train": {"source", "documents", "tokens", "bytes", "sha256"}, "held_out": ...}."""
        return {
            name: {
                "source": ", ".join(self.source),
                "documents": split.documents,
                "tokens": len(split.tokens),
                "bytes": split.text_bytes,
                "sha256": split.sha256,
            }
            for name, split in self.splits.items()
        }


def manifest_of(source: str | tuple[str, ...]) -> Manifest | None:
    """The manifest of a prepared corpus, None for other sources. No shard is read."""
    words = sources.split_source(source)
    prepared = [word for word in words if shards.is_prepared(word)]
    if prepared and len(words) > 1:
        raise DataError(f"{prepared[0]} is a prepared corpus and one of several sources, {', '.join(words)}; wanted it alone")
    return shards.read_manifest(prepared[0]) if prepared else None


def check(source: str | tuple[str, ...], *, field: str | None = None, held_out: float | None = None) -> None:
    """Raises DataError if the source does not exist, or was prepared with other settings. No text is read."""
    manifest = manifest_of(source)
    if manifest is None:
        sources.check(source)
        sources.check_fraction(HELD_OUT if held_out is None else held_out)
        return
    for name, value in {"field": field, "held_out": held_out}.items():
        if value is not None and value != (held := getattr(manifest.settings, name)):
            raise DataError(
                f"{name}={value!r}, but {sources.split_source(source)[0]} was prepared with {held!r}; wanted that, or None"
            )


def tokenizer_of(source: str | tuple[str, ...]) -> Tokenizer:
    """The tokenizer of a source: the one of a prepared corpus, else bytes."""
    manifest = manifest_of(source)
    if manifest is None or manifest.settings.tokenizer == tokenizers.BYTES:
        return Bytes()
    path = Path(sources.split_source(source)[0]).expanduser() / shards.TOKENIZER
    return tokenizers.load_copy(path, manifest.settings.separator_token, manifest.settings.tokenizer_sha256)


def load(source: str | tuple[str, ...], *, field: str | None = None, held_out: float | None = None, verify: bool = True) -> Corpus:
    """Opens a prepared corpus, or reads and tokenises (as bytes) a source of up to LIMIT bytes into memory.

    The latest four are cached; a change of size or time of a file invalidates the cache.

    Args:
      source: a prepared folder, or as in `sources`.
      field: of .jsonl and .parquet; None: "text". For a prepared corpus: None, or its own.
      held_out: fraction of the documents; None: 0.05. For a prepared corpus: None, or its own.
      verify: compare the SHA-256 of shards; False compares sizes only. Other sources are always read.
    Raises:
      DataError: a file cannot be read; a shard is missing, truncated, changed or of another corpus; a source is too large.
    """
    check(source, field=field, held_out=held_out)
    words, manifest = sources.split_source(source), manifest_of(source)
    with _LOCK:  # concurrent threads read a corpus once
        if manifest is not None:
            folder = Path(words[0]).expanduser()
            stamp = _file_stats(sorted([folder / shards.MANIFEST, *folder.glob("*.npy")]))
            return _open(words, verify, stamp)
        files = tuple(sources.files(source))
        fraction = HELD_OUT if held_out is None else float(held_out)
        return _read(words, field or FIELD, fraction, files, _file_stats([file.path for file in files]))


_LOCK = threading.Lock()


def _file_stats(paths: Sequence[Path]) -> tuple:
    """Path, size and time of each file: changes with the files."""
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()])


@lru_cache(maxsize=4)
def _open(words: tuple[str, ...], verify: bool, stamp: tuple) -> Corpus:
    """A prepared corpus."""
    (folder,) = words
    manifest = shards.read_manifest(folder)
    shards.verify(folder, manifest, contents=verify)

    def split(name: str) -> Split:
        held = manifest.split(name)
        tokens = Stream(shards.tokens(folder, manifest, name))
        return Split(tokens, lambda: shards.starts(folder, manifest, name), held.documents, held.text_bytes, held.sha256 or "")

    files = {file.name: file.sha256 for name in SPLITS for shard in manifest.split(name).shards for file in shard.files}
    settings = manifest.settings
    splits = {name: split(name) for name in SPLITS}
    return Corpus(settings.source, splits, settings.separator, settings.tokenizer_sha256, files, manifest.skipped)


@lru_cache(maxsize=4)
def _read(words: tuple[str, ...], field: str, held_out: float, files: tuple[File, ...], stamp: tuple) -> Corpus:
    """A source, read into memory."""
    tokenizer, parts = Bytes(), {name: _SplitInMemory() for name in SPLITS}
    digests = {}
    _check_size(words, sources.size(list(files)))
    documents = Documents(list(files), field)
    for document in documents:
        parts[document.split(held_out)].add(document, tokenizer)
        digest = digests.setdefault(document.file.label, hashlib.sha256())
        if document.row is not None:
            # The length, so that the hash depends on the borders between rows.
            digest.update(len(document.text).to_bytes(8, "little"))
        digest.update(document.text)
        _check_size(words, sum(part.text_bytes for part in parts.values()))
    sources.check_splits(words, held_out, *(len(parts[name].starts) for name in SPLITS))
    splits = {name: part.split(tokenizer) for name, part in parts.items()}
    named = {label: digest.hexdigest() for label, digest in digests.items()}
    return Corpus(words, splits, tokenizer.separator, tokenizer.sha256, named, documents.skipped)


class _SplitInMemory:
    """A split of a corpus in memory while its documents are read."""

    def __init__(self):
        self.arrays, self.starts, self.tokens, self.text_bytes = [], [], 0, 0

    def add(self, document: Document, tokenizer: Tokenizer) -> None:
        """Adds a document."""
        tokens = tokenizer.encode(document.text)
        self.arrays.append(tokens.astype(shards.dtype(tokenizer.vocab_size)))
        self.starts.append(self.tokens)
        self.tokens += 1 + len(tokens)
        self.text_bytes += len(document.text)

    def split(self, tokenizer: Tokenizer) -> Split:
        """The split, with one more separator at the end unless it is empty."""
        tokens = np.full(self.tokens + bool(self.starts), tokenizer.separator, shards.dtype(tokenizer.vocab_size))
        for start, array in zip(self.starts, self.arrays, strict=True):
            tokens[start + 1 : start + 1 + len(array)] = array
        starts = np.array(self.starts, np.int64)
        return Split(Stream([tokens]), lambda: starts, len(starts), self.text_bytes, shards.sha256([tokens]))


def _check_size(words: tuple[str, ...], size: int) -> None:
    if size > LIMIT:
        raise DataError(
            f"{', '.join(words)}: {size:,} bytes are too many to read into memory (at most {LIMIT:,}); prepare them first, with "
            f"{program()} prepare '{','.join(words)}' FOLDER, and name that folder"
        )
