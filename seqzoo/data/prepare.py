"""From a source to a folder of shards: streaming, and resumable at any moment."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from seqzoo.data import shards, sources, tokenizers
from seqzoo.data.atomic_io import atomic_write, remove_temporaries, write_errors
from seqzoo.data.errors import DataError
from seqzoo.data.shards import MANIFEST, SPLITS, TOKENIZER, UNFINISHED, Manifest, Settings, Split
from seqzoo.data.sources import Document, Documents
from seqzoo.data.tokenizers import BYTES, SEPARATOR, Tokenizer

TOGETHER = 2**20  # bytes of text that the tokenizer gets at once


def prepare(
    source: str | tuple[str, ...],
    folder: str | Path,
    *,
    tokenizer: str = BYTES,
    separator: str | None = None,
    field: str = "text",
    held_out: float = 0.05,
    shard_tokens: int = 2**26,
    console: Console | None = None,
) -> Manifest:
    """Tokenises a source into shards, or goes on where a call with the same settings was stopped.

    Whenever it is killed, the next call goes on after the last complete shard, and the folder ends up the same, byte for byte. A
    finished corpus is verified and left alone. Memory: a few times a shard of each split, or the largest document.

    Args:
      source: as in `sources`.
      folder: where the corpus goes; new, empty, or left by an earlier call. Not inside the source.
      tokenizer: "bytes", or the path of a Hugging Face tokenizer.json, which is copied into the folder.
      separator: the token of that tokenizer that is to stand before documents; None: "<|endoftext|>". "bytes" has its own.
      field: which field of .jsonl and column of .parquet holds the text.
      held_out: share of the documents that goes into the held-out split, in [0, 1); `Document.split` says which ones.
      shard_tokens: tokens of a shard at most, but for a longer document, which has one for itself.
      console: where to show the progress; None: nowhere.
    Raises:
      DataError: a setting out of range, a source that cannot be read, a text that cannot be tokenised, a split without documents, a
        folder that holds something else, or what was prepared with other settings (which, and the values) or from other files.
      WriteError: the disk is full, or the folder cannot be written.
    """
    sources.check_share(held_out)
    if not isinstance(shard_tokens, int) or isinstance(shard_tokens, bool) or shard_tokens < 1:
        raise DataError(f"shard_tokens={shard_tokens!r}, wanted a whole number of at least 1")
    folder = Path(folder).expanduser()
    for word in sources.words(source):
        if (inside := sources.folder(word)) is not None and folder.resolve().is_relative_to(inside.resolve()):
            raise DataError(f"{folder} lies in the source, {inside}; wanted a folder outside of it")
    files = sources.files(source)
    encoder = tokenizers.load(tokenizer, separator)
    settings = Settings(
        source=sources.words(source),
        files=len(files),
        listing=sources.listing(files),
        field=field,
        held_out=held_out,
        tokenizer=BYTES if tokenizer == BYTES else TOKENIZER,
        tokenizer_sha256=encoder.sha256,
        separator=encoder.separator,
        separator_token=None if tokenizer == BYTES else separator or SEPARATOR,
        vocab_size=encoder.vocab_size,
        shard_tokens=shard_tokens,
    )
    held = _held(folder, settings) or _begin(folder, settings)
    remove_temporaries(folder)
    if held.sha256 is None:
        with _bar(console) as bar:
            task = bar.add_task("", total=sources.size(files))
            held = _go_on(folder, held, Documents(files, field), encoder, lambda document: bar.advance(task, document.share))
    with write_errors(folder / UNFINISHED):
        (folder / UNFINISHED).unlink(missing_ok=True)
    return held


def _held(folder: Path, settings: Settings) -> Manifest | None:
    """The manifest of what the folder holds, finished or not, or None if that is nothing."""
    for name in (MANIFEST, UNFINISHED):
        if (folder / name).is_file():
            held = shards.read_manifest(folder, name)
            if differing := held.settings.differences(settings):
                raise DataError(
                    f"{folder} was prepared with other settings ({'; '.join(differing)}); wanted the same, or another folder. "
                    f"`listing` is the hash of the files' names and sizes"
                )
            shards.verify(folder, held, alone=name == MANIFEST)
            return held
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; wanted a folder")
    if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no corpus; wanted a new folder, or that of a corpus to be gone on with")
    return None


def _begin(folder: Path, settings: Settings) -> Manifest:
    """Makes the folder of a corpus without shards."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(settings=settings)
    shards.write_manifest(folder, UNFINISHED, manifest)
    return manifest


def _go_on(folder: Path, held: Manifest, documents: Documents, encoder: Tokenizer, advance: Callable[[Document], None]) -> Manifest:
    """Writes the shards that are missing, the tokenizer and the manifest."""
    settings = held.settings
    splits = {name: _Split(folder, name, held.split(name), settings) for name in SPLITS}

    def manifest() -> Manifest:
        found = {name: Split(shards=tuple(split.shards)) for name, split in splits.items()}
        return held.model_copy(update=found)

    for batch in _together(_missing(documents, splits, settings.held_out, advance)):
        encoded = encoder.encode_all([document for document, _ in batch])
        for (document, split), tokens in zip(batch, encoded, strict=True):
            if split.add(tokens, len(document.text)):
                shards.write_manifest(folder, UNFINISHED, manifest())
            advance(document)
    for split in splits.values():
        split.finish()
        shards.write_manifest(folder, UNFINISHED, manifest())
    sources.check_splits(settings.source, settings.held_out, *(manifest().split(name).documents for name in SPLITS))
    if settings.tokenizer == TOKENIZER:
        with atomic_write(folder / TOKENIZER) as file, encoder.path.open("rb") as given:
            shutil.copyfileobj(given, file)
    finished = shards.summed(folder, manifest().model_copy(update={"skipped": documents.skipped}))
    shards.write_manifest(folder, MANIFEST, finished)
    return finished


class _Split:
    """A split under way: its complete shards, and the documents of the next."""

    def __init__(self, folder: Path, name: str, held: Split, settings: Settings):
        self.folder, self.name = folder, name
        self.shards = list(held.shards)
        self.there = held.documents  # documents in complete shards
        self.limit = settings.shard_tokens
        self.dtype = shards.dtype(settings.vocab_size)
        self.separator = np.array([settings.separator], self.dtype)
        self._clear()

    def add(self, tokens: np.ndarray, text_bytes: int) -> bool:
        """Adds a document; returns whether the shard was full without it and has been written."""
        full = bool(self.starts) and self.tokens + 1 + len(tokens) > self.limit
        if full:
            self._write()
        self.starts.append(self.tokens)
        self.parts += [self.separator, tokens.astype(self.dtype)]
        self.tokens += 1 + len(tokens)
        self.text_bytes += text_bytes
        return full

    def finish(self) -> None:
        """Writes the last shard, which ends with the split's last separator, unless it is there."""
        if self.starts:
            self.parts.append(self.separator)
            self._write()

    def _write(self) -> None:
        name = f"{self.name}-{len(self.shards):05d}"
        tokens, starts = np.concatenate(self.parts), np.array(self.starts, np.int64)
        self.shards.append(shards.write(self.folder, name, tokens, starts, self.text_bytes))
        self._clear()

    def _clear(self) -> None:
        self.parts, self.starts, self.tokens, self.text_bytes = [], [], 0, 0


def _missing(documents: Documents, splits: dict[str, _Split], held_out: float, advance) -> Iterator[tuple[Document, _Split]]:
    """The documents that are in no complete shard, with their split."""
    seen = dict.fromkeys(splits, 0)
    for document in documents:
        name = document.split(held_out)
        seen[name] += 1
        if seen[name] > splits[name].there:
            yield document, splits[name]
        else:
            advance(document)


def _together(pairs: Iterable[tuple[Document, _Split]]) -> Iterator[list[tuple[Document, _Split]]]:
    """Groups of documents with about TOGETHER bytes of text."""
    group, size = [], 0
    for document, split in pairs:
        group.append((document, split))
        size += len(document.text)
        if size >= TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bar(console: Console | None) -> Progress:
    columns = (TextColumn("preparing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console or Console(quiet=True), transient=True)
