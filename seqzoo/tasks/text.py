"""Text: predict the next token of documents, in windows or in streams that continue from batch to batch."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from seqzoo import data
from seqzoo.data import Corpus, Split, Tokenizer, sources
from seqzoo.specs import Length, Rate, Seed
from seqzoo.tasks.base import BatchSpec, EvalSet, Task, register
from seqzoo.tasks.epochs import bijection, hashed

HELD_OUT = "held_out"
ORDER, PHASE, PHASE_HIGH, DOCUMENTS = range(4)  # what a key is for


@register("text")
class Text(Task):
    """The next token of a corpus's documents, each of which begins with a separator.

    Documents are joined end to end. The separator after a document is its last target and the first token of the next document. A
    batch is a pure function of (settings, spec, index), made on the host from files:

    **Windows** (`stream=False`): the training tokens form a ring that is cut into rows of `length` that do not overlap. The places
    of the cuts and the order of the rows depend on the epoch. Tokens that do not fill a row or a batch are skipped, different
    ones in each epoch. A row's segment ids count its documents from 1.

    **Streams** (`stream=True`): the documents, in an order that depends on the epoch, are joined end to end and cut into
    `batch_size` lanes. Batch i holds window i of each lane, so that row r of a batch continues where row r of the previous batch
    ended. A document keeps its segment id over that border; neighbouring documents have different ids, also where an epoch ends.
    Tokens that do not fill all lanes are skipped.

    The held-out split, documents that are in no training batch, is evaluated in order, in windows of each of `eval_lengths` that do
    not overlap; with `eval_tokens`, in stretches spread evenly over it, the same for all lengths. It is for validation; there is no
    test set, because a prepared corpus has two splits.

    Raises:
      SpecError: a setting outside its range, by name. When the corpus is first needed: DataError for a source that does not exist,
        files that cannot be read and shards that are not as prepared; ValueError for too few tokens for a batch.
    Cost: the rows' own tokens; streams also keep three numbers per document of the current epoch.
    """

    source: str | tuple[str, ...] = "stdlib"
    """A prepared corpus, or as in `seqzoo.data.sources`: "stdlib", a folder, a glob, a file, or several of these."""
    length: Length = 1024
    """Tokens of a row."""
    batch_size: Length = 8
    """Rows of a batch."""
    stream: bool = False
    """Continues each row from batch to batch, with the model's state. If False, rows are separate windows."""
    held_out: Rate | None = None
    """Fraction of the documents that is held out; None: 0.05, or what the corpus was prepared with."""
    eval_lengths: Length | tuple[Length, ...] | None = None
    """Tokens of the evaluation's rows, one length or several; None: `length`."""
    eval_batch_size: Length | None = None
    """Rows of an evaluation batch; None: as `batch_size`."""
    eval_tokens: Length | None = 131_072
    """Evaluate on this many held-out tokens only, rounded up to stretches of the longest of `eval_lengths`; None: on all."""
    positions: Literal["window", "document"] | None = None
    """"window": a position counts from the row's first token or, later in the row, from its document's first. "document": always
    from its document's first. None: "document" for streams (the only choice), else "window"."""
    field: Annotated[str, Field(min_length=1)] | None = None
    """The field of .jsonl and column of .parquet that holds the text; None: "text", or what the corpus was prepared with."""
    verify: bool = True
    """Compares the shards of a prepared corpus with their recorded hashes when it opens them. If False, only their sizes."""
    seed: Seed = 0
    """Seed of the order of rows."""

    on_host: ClassVar[bool] = True  # batches come from `rows`, not from `batch`

    @model_validator(mode="after")
    def _settings_fit_each_other(self):
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"eval_lengths={self.eval_lengths!r}, wanted at least one length, and each once")
        try:
            sources.split_source(self.source)
        except data.DataError as error:
            raise ValueError(str(error)) from None
        if self.stream and self.positions == "window":
            raise ValueError("positions='window', wanted 'document' (the only one for stream=True), or None")
        return self

    @property
    def lengths(self) -> tuple[int, ...]:
        """`eval_lengths` with the default filled in."""
        lengths = self.length if self.eval_lengths is None else self.eval_lengths
        return lengths if isinstance(lengths, tuple) else (lengths,)

    @property
    def from_document(self) -> bool:
        """True if positions count from a document's first token, also where that is in an earlier row."""
        return (self.positions or ("document" if self.stream else "window")) == "document"

    @cached_property
    def corpus(self) -> Corpus:
        """The tokens; opened or read when first asked for, once for all tasks of equal source."""
        return data.load(self.source, field=self.field, held_out=self.held_out, verify=self.verify)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus. Does not read the corpus."""
        data.check(self.source, field=self.field, held_out=self.held_out)
        return data.tokenizer_of(self.source)

    @property
    def stateful(self) -> bool:
        """True if row r of a batch continues row r of the previous batch."""
        return self.stream

    @cached_property
    def vocab_size(self) -> int:
        """Vocabulary size of the tokenizer, the separator included. Does not read the corpus."""
        data.check(self.source, field=self.field, held_out=self.held_out)
        manifest = data.manifest_of(self.source)
        return data.Bytes.vocab_size if manifest is None else manifest.settings.vocab_size

    @property
    def max_length(self) -> int:
        """The number of positions: tokens of the longest row, or of the longest document where positions count through it."""
        longest = max(self.length, *self.lengths)
        if not self.from_document:
            return longest
        return max(longest, *(split.longest for split in self.corpus.splits.values()))

    @property
    def bytes_per_target(self) -> float:
        """Bytes of text per predicted token of the training split: bits per byte = loss / ln 2 / this."""
        return _bytes_per_target(self.corpus.splits["train"])

    def fingerprint(self) -> dict[str, str]:
        """The hash, "sha256:...", of each file or shard that batches come from, and of the tokenizer."""
        return self.corpus.fingerprint()

    def describe(self) -> dict[str, dict[str, Any]]:
        """A record of the corpus: {split: {"source", "documents", "tokens", "bytes", "sha256"}}."""
        return self.corpus.describe()

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step`: always the same."""
        return BatchSpec("train", 0, self.batch_size, self.length)

    def eval_sets(self) -> tuple[EvalSet, ...]:
        """The evaluation sets, "held-out length=1024" and so on; none without held-out documents. All score the same tokens."""
        size = self.eval_batch_size or self.batch_size
        return tuple(
            EvalSet(
                name=f"held-out length={length}",
                spec=BatchSpec("eval", segment, size, length),
                batches=-(-self._stretches.windows(length) // size),
                chance=None,
                settings={"length": length},
                bytes_per_target=_bytes_per_target(self.corpus.splits[HELD_OUT]),
            )
            for segment, length in enumerate(self.lengths if self._stretches.number else ())
        )

    def check(self) -> None:
        """Raises ValueError if the corpus is too small for a batch, or a split of it has documents but no text."""
        self._steps(self.spec(0))
        for name, split in self.corpus.splits.items():
            if split.documents and not split.text_bytes:
                found = f"the {split.documents} documents of the split {name} of {', '.join(self.corpus.source)} are empty"
                raise ValueError(f"text: {found}; wanted text in them, or another held_out")

    def reads(self, folder: Path) -> bool:
        """True if a folder that is the source contains this one. A prepared corpus reads the files of its manifest alone."""
        if data.manifest_of(self.source) is not None:
            return False
        inside = map(sources.folder, sources.split_source(self.source))
        return any(each is not None and folder.resolve().is_relative_to(each.resolve()) for each in inside)

    def notes(self) -> tuple[str, ...]:
        """Tokens and files that are skipped."""
        train, held = (self.corpus.splits[name] for name in ("train", HELD_OUT))
        used = self._steps(self.spec(0)) * self.batch_size * self.length
        notes = []
        if self.corpus.skipped:
            notes.append(f"text: binary files of {', '.join(self.corpus.source)} skipped: {self.corpus.skipped}")
        if used < train.targets:
            notes.append(
                f"text: {train.targets - used:,} of {train.targets:,} training tokens do not fill a batch of {self.batch_size} "
                f"rows of {self.length} and are skipped, different ones in each epoch"
            )
        if (scored := self._stretches.tokens) < held.targets:
            notes.append(f"text: evaluation is on {scored:,} of {held.targets:,} held-out tokens, spread evenly (eval_tokens)")
        return tuple(notes)

    def rows(self, spec: BatchSpec, index: int, rows: slice) -> dict[str, np.ndarray]:
        """Some rows of the batch of `spec` at `index`, a training step or an evaluation batch's number.

        Returns:
          "tokens", "targets", "segment_ids", "positions" int32 [r, t] and "weights" float32 [r, t], for the r rows that the slice
          takes of the batch. In evaluation, places after the last token are padding: weight 0, segment 0.
        """
        chosen, index = range(spec.batch)[rows], int(index)
        if spec.split == "eval":
            made = [self._held_out_row(spec, index * spec.batch + row) for row in chosen]
        elif self.stream:
            made = self._stream_rows(spec, index, chosen)
        else:
            made = [self._window(spec, index, row) for row in chosen]
        columns = zip(*made, strict=True) if made else [np.zeros((0, spec.length))] * len(Row._fields)
        dtypes = (np.int32, np.int32, np.int32, np.int32, np.float32)
        return {name: np.array(c, t).reshape(-1, spec.length) for name, c, t in zip(Row._fields, columns, dtypes, strict=True)}

    def _window(self, spec: BatchSpec, index: int, row: int) -> "Row":
        """A row of windows: some `length` tokens of the ring, and the one after."""
        train = self.corpus.splits["train"]
        epoch, step = divmod(index, self._steps(spec))
        ring, windows = train.targets, train.targets // spec.length
        number = bijection(step * spec.batch + row, windows, hashed(self.seed, epoch, ORDER))
        phase = (hashed(self.seed, epoch, PHASE_HIGH) << 32) + hashed(self.seed, epoch, PHASE)
        begin = (phase + number * spec.length) % ring
        end = min(begin + spec.length, ring)
        # The split's last separator is its first, so that the ring closes: what follows is the first document.
        tokens = np.concatenate([train.tokens[begin : end + 1], train.tokens[1 : begin + spec.length - end + 1]])
        return self._row(train, tokens, begin)

    def _held_out_row(self, spec: BatchSpec, number: int) -> "Row":
        """Window `number` of the held-out split, filled up where its stretch ends."""
        held = self.corpus.splits[HELD_OUT]
        begin, end = self._stretches.window(spec.length, number)
        row = self._row(held, held.tokens[begin : end + 1], begin)
        missing = spec.length - len(row.tokens)
        return Row(*(np.pad(column, (0, missing)) for column in row))

    def _row(self, split: Split, tokens: np.ndarray, begin: int) -> "Row":
        """The row of some tokens, the first of which is number `begin` of the split; the last is only a target."""
        starts = tokens[:-1] == self.corpus.separator
        segments = np.cumsum(starts)
        if len(starts) and not starts[0]:
            segments += 1
        places = np.arange(len(starts))
        positions = places - np.maximum.accumulate(np.where(starts, places, 0))
        if self.from_document and len(starts):
            own = split.starts[np.searchsorted(split.starts, begin, side="right") - 1]
            positions = np.where(segments == 1, places + (begin - own), positions)
        return Row(tokens[:-1], tokens[1:], segments, positions, np.ones(len(starts)))

    def _stream_rows(self, spec: BatchSpec, index: int, rows: range) -> list["Row"]:
        """Window `index` of some lanes."""
        train = self.corpus.splits["train"]
        steps = self._steps(spec)
        epoch, step = divmod(index, steps)
        laid = _laid(train, self.seed, epoch)
        return [_streamed(train, laid, epoch, (row * steps + step) * spec.length, spec.length) for row in rows]

    def _steps(self, spec: BatchSpec) -> int:
        """Batches of an epoch."""
        targets = self.corpus.splits["train"].targets
        lane = spec.length * spec.batch
        steps = targets // lane if self.stream else targets // spec.length // spec.batch
        if not steps:
            raise ValueError(
                f"text: the training split has {targets:,} tokens, a batch of batch_size={spec.batch} rows of length={spec.length} "
                f"has {lane:,}; wanted smaller ones, or more text"
            )
        return steps

    @cached_property
    def _stretches(self) -> "Stretches":
        """The held-out tokens that an evaluation predicts."""
        targets, longest = self.corpus.splits[HELD_OUT].targets, max(self.lengths)
        wanted = targets if self.eval_tokens is None else min(targets, self.eval_tokens)
        return Stretches(targets, longest, -(-wanted // longest))


class Stretches(NamedTuple):
    """Pieces of `length` tokens, in order, spread evenly over `targets` tokens; the last one is shorter where they cover all."""

    targets: int
    length: int
    number: int

    def begin(self, index: int) -> int:
        """The first token of a stretch."""
        if self.number * self.length >= self.targets:
            return index * self.length
        return index * (self.targets - self.length) // max(1, self.number - 1)

    @property
    def tokens(self) -> int:
        """Tokens in all stretches."""
        return min(self.number * self.length, self.targets)

    def windows(self, length: int) -> int:
        """The number of windows of `length` tokens in all stretches."""
        last = self.targets - self.begin(self.number - 1)
        return (self.number - 1) * -(-self.length // length) + -(-min(self.length, last) // length)

    def window(self, length: int, number: int) -> tuple[int, int]:
        """First token and end of a window: it ends no later than its stretch, and is empty after the last."""
        stretch, place = divmod(number, -(-self.length // length))
        if stretch >= self.number:
            return 0, 0
        end = min(self.begin(stretch) + self.length, self.targets)
        begin = min(self.begin(stretch) + place * length, end)
        return begin, min(begin + length, end)


class Row(NamedTuple):
    """One row of a batch, [t] each."""

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


class Laid(NamedTuple):
    """The documents of an epoch, joined end to end."""

    order: np.ndarray  # [documents] which document comes when
    ends: np.ndarray  # [documents] int64, the token after each, counted from the epoch's first


@lru_cache(maxsize=8)
def _laid(split: Split, seed: int, epoch: int) -> Laid:
    """The order of an epoch's documents: by their hashes."""
    keys = hashed(seed, epoch, DOCUMENTS, np.arange(split.documents, dtype=np.uint32))
    order = np.argsort(keys, kind="stable")
    lengths = np.diff(split.starts, append=split.targets)
    return Laid(order, np.cumsum(lengths[order]))


def _streamed(split: Split, laid: Laid, epoch: int, begin: int, length: int) -> Row:
    """Tokens [begin, begin + length] of an epoch's documents laid end to end, the last of them only a target."""
    tokens, segments, positions = [], [], []
    place = int(np.searchsorted(laid.ends, begin, side="right"))
    missing = length + 1
    while missing:
        if place == len(laid.order):  # the very end of an epoch: a separator follows, whichever document comes next
            tokens.append(split.tokens[split.targets : split.targets + 1])
            break
        start, end = _bounds(split, laid.order[place])
        offset = begin - (int(laid.ends[place]) - (end - start))
        piece = split.tokens[start + offset : min(end, start + offset + missing)]
        tokens.append(piece)
        # Neighbours differ by 2, and epochs by their parity, so that their borders are document borders too.
        segments.append(np.full(len(piece), 1 + (2 * place + epoch % 2) % (2**31 - 2)))
        positions.append(np.arange(offset, offset + len(piece)))
        begin, missing, place = begin + len(piece), missing - len(piece), place + 1
    tokens = np.concatenate(tokens)
    segments, positions = (np.concatenate(column)[:length] for column in (segments, positions))
    return Row(tokens[:-1], tokens[1:], segments, positions, np.ones(length))


def _bounds(split: Split, document: int) -> tuple[int, int]:
    """The first token of a document, its separator, and that of the next."""
    last = document + 1 == split.documents
    return int(split.starts[document]), split.targets if last else int(split.starts[document + 1])


def _bytes_per_target(split: Split) -> float:
    return split.text_bytes / split.targets if split.targets else 1.0
