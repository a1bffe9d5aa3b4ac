"""The command `plot`: curves of runs, or of all runs of a comparison."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import UsageError, checked, parse_arguments
from seqzoo.entry import program

FORMATS = (".png", ".svg", ".pdf")


class Plot(config.Section):
    """Settings of `plot`."""

    metric: str = "loss"
    """A name in metrics.jsonl: "loss", "accuracy", "gradient_norm", "tokens_per_second", "position_loss" ..."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """The x axis."""
    out: str | None = None
    """File to write, a .png, .svg or .pdf; None: METRIC.png in the working directory."""


def plot(arguments: list[str], console: Console) -> int:
    """`plot RUN... [--metric...] [--x...] [--out...]`."""
    from seqzoo.compare import curves, figures
    from seqzoo.data.atomic_io import write_errors

    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, words = arguments[:count], arguments[count:]
    settings = parse_arguments(Plot, words, f"{program()} plot RUN...")
    if not folders:
        raise UsageError(f"plot needs run folders: {program()} plot runs/NAME runs/OTHER")
    out = Path(settings.out or f"{settings.metric}.png")
    if out.suffix not in FORMATS:
        raise UsageError(f"--out {out}: wanted a file that ends in {', '.join(FORMATS)}")
    figure = checked(lambda: curves.draw(folders, settings.metric, settings.x))
    with write_errors(out):
        figures.save(figure, out)
    console.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)
    return 0
