"""What a comparison will run, and what that takes, before anything is run: its cells by abstract shapes alone."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqzoo import config, tasks
from seqzoo.compare.colours import colour
from seqzoo.compare.output import whole
from seqzoo.compare.summary import label_of
from seqzoo.mixers import state_bytes
from seqzoo.model import params


class Cell(NamedTuple):
    """The experiments of one label: they differ in learning rate and seed only."""

    label: str
    experiments: tuple[config.Experiment, ...]
    parameters: int
    state_bytes: int  # decode memory per row at the task's longest length
    steps: int  # of one experiment, at most
    tokens: int  # that it is trained on, at most


def alike(chosen: config.Config) -> dict[str, tuple[config.Experiment, ...]]:
    """The experiments by label, those that differ in learning rate and seed together."""
    if isinstance(chosen, config.Experiment):
        return {", ".join(chosen.model.layers): (chosen,)}
    groups: dict[str, tuple[config.Experiment, ...]] = {}
    for point, experiment in chosen.experiments():
        label = label_of(chosen, point, experiment.model.layers)
        groups[label] = (*groups.get(label, ()), experiment)
    return groups


def cells(chosen: config.Config) -> list[Cell]:
    """One cell per label, in the order of the experiments. Nothing is allocated; equal models are built once. The devices are not
    looked at: a grid can be listed where it could not run.

    Raises:
      ValueError: a model that cannot be built, by what does not fit.
    """
    from seqzoo.training import build

    models: dict[Any, nnx.Module] = {}
    tokens: dict[Any, int] = {}
    found = []
    for label, experiments in alike(chosen).items():
        first = experiments[0]
        task = tasks.registry.create(first.task)
        shape = (first.model, task.vocab_size)
        if shape not in models:
            models[shape] = nnx.eval_shape(lambda first=first, task=task: build(first.model, task, jax.random.key(0)))
        length = (first.task, first.training.steps)
        if length not in tokens:
            specs = map(task.spec, range(first.training.steps))
            tokens[length] = sum(spec.batch * spec.length for spec in specs)
        found.append(
            Cell(
                label,
                experiments,
                params.count(params.split(models[shape])[1]),
                state_bytes(models[shape], task.max_length),
                first.training.steps,
                tokens[length],
            )
        )
    return found


def show(chosen: config.Config, console: Console) -> None:
    """Prints the cells of a comparison, or the one of an experiment, and what all runs take together."""
    grid = cells(chosen)
    several = any(len(cell.experiments) > 1 for cell in grid)
    table = Table(title=chosen.name, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in (*(["runs"] if several else []), "parameters", "state bytes", "steps", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in grid:
        runs = [f"{len(cell.experiments)}"] if several else []
        numbers = (cell.parameters, cell.state_bytes, cell.steps, cell.tokens)
        table.add_row(Text.assemble(("● ", colour(cell.label)), cell.label), *runs, *(f"{number:,}" for number in numbers))
    whole(console, table)
    runs = [experiment for cell in grid for experiment in cell.experiments]
    total = sum(cell.tokens * len(cell.experiments) for cell in grid)
    lines = [f"Runs: {len(runs)}, with {total:,} tokens in all." + " Those of one line differ in learning rate and seed." * several]
    lines += ["State bytes: decode memory per row at the task's longest length. Steps and tokens: of one run."]
    if levels := sorted({experiment.training.stop_above for experiment in runs} - {None}):
        lines += [f"Runs end sooner where an evaluation's accuracy is above {', '.join(f'{level:g}' for level in levels)}."]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
