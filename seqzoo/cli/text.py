"""The commands prepare and generate: tokenised shards from files, and text from a run."""

import itertools
import shlex
import signal
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.text import Text

from seqzoo import config
from seqzoo.cli.runs import one_experiment
from seqzoo.cli.shared import UsageError, checked, fail, parse_arguments, take_run_folder
from seqzoo.compare.tables import new_table, print_table
from seqzoo.entry import program
from seqzoo.specs import Length


class Prepare(config.Section):
    """Settings of `prepare`: tokenizer, splits and size of shards."""

    tokenizer: str = "bytes"
    """Tokenizer: "bytes", or the path of a Hugging Face tokenizer.json (which needs pip install "seqzoo[text]")."""
    separator: str | None = None
    """Token of that tokenizer before every document; None: "<|endoftext|>". "bytes" has its own."""
    field: str = "text"
    """The field of .jsonl and column of .parquet files that holds the text."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Fraction of the documents held out for evaluation; a hash of each file name decides."""
    shard_tokens: Length = 2**26
    """Largest number of tokens in a shard; a longer document has its own shard."""


def prepare(arguments: list[str], console: Console) -> int:
    """`prepare SOURCE FOLDER [--settings]`."""
    from seqzoo import data
    from seqzoo.training.run import distributed

    named = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    settings = arguments[len(named) :]
    if len(named) != 2 and not {"-h", "--help"} & set(settings):
        raise UsageError(f"prepare needs a source and a new folder: {program()} prepare stdlib corpora/stdlib")
    if distributed.is_multiprocess():
        raise UsageError("prepare runs in one process, found several; wanted --distributed off")
    prog = f"{program()} prepare {' '.join(named) or 'SOURCE FOLDER'}"
    chosen = checked(lambda: parse_arguments(Prepare, settings, prog))
    source, folder = named
    try:
        manifest = checked(lambda: data.prepare(source, folder, **chosen.model_dump(), console=console))
    except KeyboardInterrupt:
        fail(f"stopped; the same command continues: {program()} prepare {shlex.join(arguments)}", 1)
        return 128 + signal.SIGINT
    table = new_table(Text(f"{folder}, from {source}"))
    table.add_column("split", overflow="fold")
    for name in ("documents", "tokens", "bytes of text", "shards"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in data.SPLITS:
        split = manifest.split(name)
        numbers = (split.documents, split.tokens, split.text_bytes, len(split.shards))
        table.add_row(name, *(f"{number:,}" for number in numbers))
    print_table(console, table)
    if manifest.skipped:
        console.print(f"binary files skipped: {manifest.skipped}")
    if unknown := sum(manifest.split(name).unknown for name in data.SPLITS):
        console.print(f"tokens for text that the tokenizer does not know: {unknown:,}")
    return 0


def generate(arguments: list[str], console: Console) -> int:
    """`generate RUN --prompt TEXT [--settings]`."""
    from seqzoo import training
    from seqzoo.generation import text
    from seqzoo.training.run import distributed

    if distributed.is_multiprocess():
        raise UsageError("generate runs in one process, found several; wanted --distributed off")
    folder, rest = take_run_folder("generate", arguments)
    settings = parse_arguments(config.Generation, rest, f"{program()} generate {folder}")
    one_experiment(checked(lambda: training.load_config(folder)), folder)
    model = checked(lambda: training.load_model(folder))
    tokenizer = checked(lambda: training.load_tokenizer(folder)) or text.TokenIds()

    def write(piece: str) -> None:
        console.file.write(piece.translate(text.CONTROL_PICTURES) if console.is_terminal else piece)
        console.file.flush()

    code = 0
    try:
        checked(lambda: text.generate_text(model, tokenizer, settings, write))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except FloatingPointError as error:
        return fail(error, 1)
    write("\n")
    return code
