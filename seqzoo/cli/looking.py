"""The commands that look at runs."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import FLAGS, Wrong, checked, load, one_folder, parse


class Plot(config.Section):
    """Settings of `plot`."""

    metric: str = "loss"
    """A name that lines of metrics.jsonl have: "loss", "accuracy", "gradient_norm", "tokens_per_second", "position_loss" ..."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What the metric is drawn against."""
    out: str | None = None
    """PNG to write; None: the metric's name in the current folder."""


def inspect(arguments: list[str], console: Console) -> int:
    """`inspect RUN`, or `inspect CONFIG.py [--settings]`."""
    import jax

    from seqzoo import compare
    from seqzoo import inspect as looking

    jax.config.update("jax_platforms", "cpu")  # the accelerators are left to the run
    if not (arguments and arguments[0].endswith(".py")):
        folder, rest = one_folder("inspect", arguments)
        if rest:
            raise Wrong(f"inspect takes one run folder and no settings, found {' '.join(rest)}; a config file may have settings")
        checked(lambda: looking.show_run(folder, console))
        return 0
    chosen = checked(lambda: parse(*load(arguments)))
    for label, (experiment, *_) in compare.alike(chosen).items():
        if isinstance(chosen, config.Comparison):
            console.rule(label)
        checked(lambda experiment=experiment: looking.show(experiment, console))
    return 0


def plot(arguments: list[str], console: Console) -> int:
    """`plot RUN... [--metric...] [--x...] [--out...]`."""
    from seqzoo.compare import curves, pictures
    from seqzoo.writing import writing

    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, words = arguments[:count], arguments[count:]
    settings = tyro.cli(Plot, args=words, prog="train.py plot RUN...", config=FLAGS)
    if not folders:
        raise Wrong("plot needs run folders: train.py plot runs/NAME runs/OTHER")
    figure = checked(lambda: curves.draw(folders, settings.metric, settings.x))
    out = Path(settings.out or f"{settings.metric}.png")
    with writing(out):
        pictures.save(figure, out)
    console.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)
    return 0
