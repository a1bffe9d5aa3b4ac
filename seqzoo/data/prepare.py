"""Preparation of a corpus: tokenises a source into shards, streaming and resumable."""

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
from seqzoo.data.tokenizers import BYTES, SEPARATOR, HuggingFace, Tokenizer

GROUP_BYTES = 2**20  # bytes of text per call of the tokenizer


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
    """Tokenises a source into shards, or continues a stopped call with the same settings.

    After a kill at any moment, the next call continues after the last complete shard; the final folder is the same, byte for byte.
    A finished corpus is verified and not changed. Memory: a few times one shard of each split, or the largest document.

    Args:
      source: as in `sources`.
      folder: of the corpus; new, empty, or from an earlier call. Not inside the source.
      tokenizer: "bytes", or the path of a Hugging Face tokenizer.json, which is copied into the folder.
      separator: token of that tokenizer before every document; None: "<|endoftext|>". "bytes" has its own.
      field: field of .jsonl and column of .parquet with the text.
      held_out: fraction of the documents in the held-out split, in [0, 1); `Document.split` decides which.
      shard_tokens: largest number of tokens in a shard; a longer document has its own shard.
      console: shows the progress; None: no output.
    Raises:
      DataError: a setting out of range, a source that cannot be read, a text that cannot be tokenised, a split without documents, a
        folder that holds something else, or a corpus prepared with other settings (both values are named) or from other files.
      WriteError: the disk is full, or the folder cannot be written.
    """
    sources.check_fraction(held_out)
    if not isinstance(shard_tokens, int) or isinstance(shard_tokens, bool) or shard_tokens < 1:
        raise DataError(f"shard_tokens={shard_tokens!r}, wanted a whole number of at least 1")
    folder = Path(folder).expanduser()
    for word in sources.split_source(source):
        if (inside := sources.folder(word)) is not None and folder.resolve().is_relative_to(inside.resolve()):
            raise DataError(f"{folder} is inside the source, {inside}; wanted a folder outside of it")
    files = sources.files(source)
    encoder = tokenizers.load(tokenizer, separator)
    settings = Settings(
        source=sources.split_source(source),
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
    held = _held(folder, settings) or _create(folder, settings)
    remove_temporaries(folder)
    if held.sha256 is None:
        with _bar(console) as bar:
            task = bar.add_task("", total=sources.size(files))
            advance = lambda document: bar.advance(task, document.file_bytes)
            held = _write_missing_shards(folder, held, Documents(files, field), encoder, advance)
    with write_errors(folder / UNFINISHED):
        (folder / UNFINISHED).unlink(missing_ok=True)
    return held


def _held(folder: Path, settings: Settings) -> Manifest | None:
    """The manifest in the folder, finished or not; None for a new or empty folder."""
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
        raise DataError(f"{folder} is not empty and holds no corpus; wanted a new folder, or the folder of a corpus to continue")
    return None


def _create(folder: Path, settings: Settings) -> Manifest:
    """Creates the folder of a corpus, without shards."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(settings=settings)
    shards.write_manifest(folder, UNFINISHED, manifest)
    return manifest


def _write_missing_shards(
    folder: Path, held: Manifest, documents: Documents, encoder: Tokenizer, advance: Callable[[Document], None]
) -> Manifest:
    """Writes the missing shards, the tokenizer and the manifest."""
    settings = held.settings
    splits = {name: _Split(folder, name, held.split(name), settings) for name in SPLITS}

    def manifest() -> Manifest:
        found = {name: Split(shards=tuple(split.shards)) for name, split in splits.items()}
        return held.model_copy(update=found)

    for batch in _group(_missing(documents, splits, settings.held_out, advance)):
        encoded = encoder.encode_all([document for document, _ in batch])
        for (document, split), tokens in zip(batch, encoded, strict=True):
            if split.add(tokens, len(document.text)):
                shards.write_manifest(folder, UNFINISHED, manifest())
            advance(document)
    for split in splits.values():
        split.finish()
        shards.write_manifest(folder, UNFINISHED, manifest())
    sources.check_splits(settings.source, settings.held_out, *(manifest().split(name).documents for name in SPLITS))
    if isinstance(encoder, HuggingFace):
        with atomic_write(folder / TOKENIZER) as file, encoder.path.open("rb") as given:
            shutil.copyfileobj(given, file)
    finished = shards.with_hashes(folder, manifest().model_copy(update={"skipped": documents.skipped}))
    shards.write_manifest(folder, MANIFEST, finished)
    return finished


class _Split:
    """A split during preparation: its complete shards, and the documents of the next one."""

    def __init__(self, folder: Path, name: str, held: Split, settings: Settings):
        self.folder, self.name = folder, name
        self.shards = list(held.shards)
        self.complete = held.documents  # documents in complete shards
        self.limit = settings.shard_tokens
        self.dtype = shards.dtype(settings.vocab_size)
        self.separator = np.array([settings.separator], self.dtype)
        self._clear()

    def add(self, tokens: np.ndarray, text_bytes: int) -> bool:
        """Adds a document; returns True if the shard was full before and was written."""
        full = bool(self.starts) and self.tokens + 1 + len(tokens) > self.limit
        if full:
            self._write()
        self.starts.append(self.tokens)
        self.parts += [self.separator, tokens.astype(self.dtype)]
        self.tokens += 1 + len(tokens)
        self.text_bytes += text_bytes
        return full

    def finish(self) -> None:
        """Writes the last shard, which ends with the last separator of the split, unless it is empty."""
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
    """The documents that no complete shard contains, with their split."""
    seen = dict.fromkeys(splits, 0)
    for document in documents:
        name = document.split(held_out)
        seen[name] += 1
        if seen[name] > splits[name].complete:
            yield document, splits[name]
        else:
            advance(document)


def _group(pairs: Iterable[tuple[Document, _Split]]) -> Iterator[list[tuple[Document, _Split]]]:
    """Groups of documents of about GROUP_BYTES."""
    group, size = [], 0
    for document, split in pairs:
        group.append((document, split))
        size += len(document.text)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _bar(console: Console | None) -> Progress:
    columns = (TextColumn("preparing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console or Console(quiet=True), transient=True)
