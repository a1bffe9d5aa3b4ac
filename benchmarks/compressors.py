"""Bits per byte of a language model and of compressors on the same held-out text.

    python -m benchmarks.compressors runs/lm-bytes                     # writes benchmarks/results/lm-bytes.json

Compressors get every held-out document of the run's corpus: one by one, each from nothing, and all of them joined, which lets a
compressor learn from one document for the next. The run must have scored all held-out text (eval_tokens=None), as bytes.
"""

import bz2
import gzip
import itertools
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from seqzoo import data, tasks, training
from seqzoo.training.run import metrics

COMPRESSORS = {
    "gzip -9": lambda text: gzip.compress(text, 9),
    "bzip2 -9": lambda text: bz2.compress(text, 9),
    "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


@dataclass(frozen=True)
class Settings:
    """Settings: the run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Its folder."""
    out: Path | None = None
    """Path of the JSON; default benchmarks/results/NAME-OF-RUN.json."""


def documents(task) -> list[bytes]:
    """The held-out documents' text."""
    split, separator = task.corpus.splits["held_out"], task.corpus.separator
    if task.vocab_size != (bytes_only := data.Bytes.vocab_size):
        raise ValueError(f"the run's corpus has {task.vocab_size} tokens; wanted one of bytes, which has {bytes_only}")
    tokens = split.tokens[0 : len(split.tokens)]
    ends = np.flatnonzero(tokens == separator)
    found = [tokens[begin + 1 : end].astype(np.uint8).tobytes() for begin, end in itertools.pairwise(ends)]
    if (size := sum(map(len, found))) != split.text_bytes:
        raise ValueError(f"{size} bytes of held-out text, but the corpus says {split.text_bytes}")
    return found


def main(settings: Settings) -> None:
    """Compresses, prints a table and writes the JSON."""
    experiment = training.load_config(settings.run)
    task = tasks.registry.create(experiment.task)
    if not isinstance(task, tasks.Text):
        raise ValueError(f"the run's task is {experiment.task}; wanted text")
    if task.eval_tokens is not None:
        raise ValueError(f"the run scored eval_tokens={task.eval_tokens} of its held-out text; wanted None, all of it")
    texts = documents(task)
    size = sum(map(len, texts))
    bits = lambda parts, compress: 8 * sum(len(compress(part)) for part in parts) / size
    needed = {
        name: {"one by one": bits(texts, compress), "joined": bits([b"".join(texts)], compress)}
        for name, compress in COMPRESSORS.items()
    }
    lines = [line for line in metrics.read(settings.run / "metrics.jsonl") if line["kind"] == "eval"]
    keys = ("step", "tokens", "seconds", "eval_set", "loss", "accuracy", "bits_per_byte", "position_loss")
    summary = json.loads((settings.run / "summary.json").read_text(encoding="utf-8"))
    record = {
        "trained": json.loads((settings.run / "environment.json").read_text(encoding="utf-8")),
        "config": experiment.model_dump(mode="json"),
        "corpus": task.describe(),
        "parameters": summary["parameters"],
        "seconds": summary["seconds"],
        "evaluations": [{key: line[key] for key in keys} for line in lines],
        "compressors": needed,
        "compressed": measure.surroundings(),
    }
    table = Table("", "bits per byte", title=f"{len(texts)} held-out documents, {size:,} bytes", title_justify="left")
    for line in lines:
        table.add_row(f"step {line['step']:,}, {line['seconds'] / 60:.1f} minutes", f"{line['bits_per_byte']:.3f}")
    for name, found in needed.items():
        for how, value in found.items():
            table.add_row(f"{name}, {how}", f"{value:.3f}")
    Console().print(table)
    out = settings.out or measure.ROOT / "benchmarks" / "results" / f"{settings.run.name}.json"
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
