"""Preparation of a corpus: tokenises a source into shards, streaming and resumable."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from seqzoo.data import shards, sources, tokenizers
from seqzoo.data.atomic_io import atomic_write, remove_temporaries, write_errors
from seqzoo.data.errors import DataError, UnreadableError
from seqzoo.data.lock import flock
from seqzoo.data.shards import MANIFEST, SPLITS, TOKENIZER, UNFINISHED, Manifest, Settings, Split, TextDigest
from seqzoo.data.sources import Document, Documents
from seqzoo.data.tokenizers import BYTES, SEPARATOR, HuggingFace, Tokenizer

_LOG = logging.getLogger(__name__)
AS_IT_WAS = "wanted the source as it was, another folder, or none there: remove it to prepare anew"
GROUP_BYTES = 2**20  # bytes of text per call of the tokenizer


class SourceChangedError(DataError):
    """A source whose documents are not those that the first shards of a corpus were made of. The shards stay."""


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
    A finished corpus is verified, against the source too, and not changed. A source that is refused leaves nothing behind. One
    process at a time prepares into a folder. Memory: a few times one shard of each split, or the largest document.

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
        folder that holds something else or that another process prepares into, or a corpus prepared with other settings (both
        values are named) or from other files.
      SourceChangedError, UnreadableError: DataErrors that leave the complete shards, as another call may continue.
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
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with _alone(folder):
        try:
            return _prepare(folder, settings, Documents(files, field), encoder, console)
        finally:  # a refused source leaves no empty folder
            for path in made:
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()


def _prepare(folder: Path, settings: Settings, documents: Documents, encoder: Tokenizer, console: Console | None) -> Manifest:
    """Prepares or verifies a corpus in a folder that exists."""
    held = _held(folder, settings)
    if held is None:
        held = Manifest(settings=settings)
        shards.write_manifest(folder, UNFINISHED, held)
    remove_temporaries(folder)
    with _bar(console) as bar:
        task = bar.add_task("", total=sources.size(documents.files))
        advance = lambda document: bar.advance(task, document.file_bytes)
        if held.sha256 is None:
            held = _write_missing_shards(folder, held, documents, encoder, advance)
        else:
            _check_source(folder, held, documents, advance)
    with write_errors(folder / UNFINISHED):
        (folder / UNFINISHED).unlink(missing_ok=True)
    return held


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Context in which no other process prepares into the folder, which is made, where its file system has locks."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; wanted a folder")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            flock(handle)
        except BlockingIOError:
            raise DataError(f"another process prepares {folder}; wanted one at a time, or another folder") from None
        except OSError as error:
            _LOG.debug("%s cannot be locked: %s", folder, error)
        yield


def _held(folder: Path, settings: Settings) -> Manifest | None:
    """The manifest in the folder, finished or not; None for an empty folder, or one where no shard was completed."""
    for name in (MANIFEST, UNFINISHED):
        if (folder / name).is_file():
            held = shards.read_manifest(folder, name)
            if name == UNFINISHED and not any(held.split(split).shards for split in SPLITS):
                return None
            if differing := held.settings.differences(settings):
                raise DataError(
                    f"{folder} was prepared with other settings ({'; '.join(differing)}); wanted the same, another folder, or none "
                    f"there: remove it to prepare anew. `listing` is the hash of the files' names and sizes"
                )
            shards.verify(folder, held, alone=name == MANIFEST)
            return held
    if any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no corpus; wanted a new folder, or the folder of a corpus to continue")
    return None


def _check_source(folder: Path, held: Manifest, documents: Documents, advance: Callable[[Document], None]) -> None:
    """Raises SourceChangedError unless the documents are those that a finished corpus was made of. Nothing is tokenised."""
    splits = {name: _Split(folder, name, held.split(name), held.settings, None) for name in SPLITS}
    for document, _ in _missing(documents, splits, held.settings.held_out, advance):
        raise SourceChangedError(f"{document.place} is not in {folder}; {AS_IT_WAS}")


def _write_missing_shards(
    folder: Path, held: Manifest, documents: Documents, encoder: Tokenizer, advance: Callable[[Document], None]
) -> Manifest:
    """Writes the missing shards, the tokenizer and the manifest. Where the source is refused, it removes all shards."""
    try:
        return _write(folder, held, documents, encoder, advance)
    except (UnreadableError, SourceChangedError):
        raise
    except DataError:
        for path in (folder / UNFINISHED, *(path for name in SPLITS for path in folder.glob(f"{name}-*.npy"))):
            path.unlink(missing_ok=True)
        raise


def _write(folder: Path, held: Manifest, documents: Documents, encoder: Tokenizer, advance: Callable[[Document], None]) -> Manifest:
    settings = held.settings
    splits = {name: _Split(folder, name, held.split(name), settings, encoder.unknown) for name in SPLITS}

    def manifest() -> Manifest:
        found = {name: Split(shards=tuple(split.shards)) for name, split in splits.items()}
        return held.model_copy(update=found)

    for batch in _group(_missing(documents, splits, settings.held_out, advance)):
        encoded = encoder.encode_all([document for document, _ in batch])
        for (document, split), tokens in zip(batch, encoded, strict=True):
            if split.add(tokens, document.text):
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

    def __init__(self, folder: Path, name: str, held: Split, settings: Settings, unknown: int | None):
        self.folder, self.name, self.unknown = folder, name, unknown
        self.shards = list(held.shards)
        self.missing = held.shards  # complete shards whose documents were not seen yet
        self.seen = 0  # documents of the first of them
        self.limit = settings.shard_tokens
        self.dtype = shards.dtype(settings.vocab_size)
        self.separator = np.array([settings.separator], self.dtype)
        self._clear()

    def holds(self, document: Document) -> bool:
        """Tells if a complete shard holds the split's next document. Raises SourceChangedError if it was made of other texts."""
        if not self.missing:
            return False
        shard = self.missing[0]
        self.seen += 1
        self.digest.add(document.text)
        if self.seen == shard.documents:
            if str(self.digest) != shard.text_sha256:
                made = self.folder / shard.tokens_file.name
                raise SourceChangedError(f"{made} was made of other texts than those up to {document.place}; {AS_IT_WAS}")
            self.missing, self.seen, self.digest = self.missing[1:], 0, TextDigest()
        return True

    def add(self, tokens: np.ndarray, text: bytes) -> bool:
        """Adds a document; returns True if the shard was full before and was written."""
        full = bool(self.starts) and self.tokens + 1 + len(tokens) > self.limit
        if full:
            self._write()
        self.starts.append(self.tokens)
        self.parts += [self.separator, tokens.astype(self.dtype)]
        self.tokens += 1 + len(tokens)
        self.text_bytes += len(text)
        self.digest.add(text)
        return full

    def finish(self) -> None:
        """Writes the last shard, which ends with the last separator of the split, unless it is empty."""
        if self.starts:
            self.parts.append(self.separator)
            self._write()

    def _write(self) -> None:
        name = f"{self.name}-{len(self.shards):05d}"
        tokens, starts = np.concatenate(self.parts), np.array(self.starts, np.int64)
        unknown = 0 if self.unknown is None else int(np.count_nonzero(tokens == self.unknown))
        about = {"text_bytes": self.text_bytes, "text_sha256": str(self.digest), "unknown": unknown}
        self.shards.append(shards.write(self.folder, name, tokens, starts, **about))
        self._clear()

    def _clear(self) -> None:
        self.parts, self.starts, self.tokens, self.text_bytes, self.digest = [], [], 0, 0, TextDigest()


def _missing(documents: Documents, splits: dict[str, _Split], held_out: float, advance) -> Iterator[tuple[Document, _Split]]:
    """The documents that no complete shard contains, with their split."""
    for document in documents:
        split = splits[document.split(held_out)]
        if split.holds(document):
            advance(document)
        else:
            yield document, split
    for split in splits.values():
        if split.missing:
            made = split.folder / split.missing[0].tokens_file.name
            raise SourceChangedError(f"{made} has documents that the source lacks; {AS_IT_WAS}")


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
