"""The command `plot`: curves of runs, or of all runs of a comparison."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import FLAGS, UsageError, checked


class Plot(config.Section):
    """Settings of `plot`."""

    metric: str = "loss"
    """A name in metrics.jsonl: "loss", "accuracy", "gradient_norm", "tokens_per_second", "position_loss" ..."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """The x axis."""
    out: str | None = None
    """PNG to write; None: METRIC.png in the working directory."""


def plot(arguments: list[str], console: Console) -> int:
    """`plot RUN... [--metric...] [--x...] [--out...]`."""
    from seqzoo.compare import curves, figures
    from seqzoo.data.atomic_io import write_errors

    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, words = arguments[:count], arguments[count:]
    settings = tyro.cli(Plot, args=words, prog="train.py plot RUN...", config=FLAGS)
    if not folders:
        raise UsageError("plot needs run folders: train.py plot runs/NAME runs/OTHER")
    figure = checked(lambda: curves.draw(folders, settings.metric, settings.x))
    out = Path(settings.out or f"{settings.metric}.png")
    with write_errors(out):
        figures.save(figure, out)
    console.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)
    return 0
