"""Dry run of a comparison: its grid points with parameters, state bytes, steps and tokens, from abstract shapes alone."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from rich.console import Console
from rich.text import Text

from seqzoo import config, tasks
from seqzoo.compare.colours import colour
from seqzoo.compare.names import short_names
from seqzoo.compare.summary import labels
from seqzoo.compare.tables import new_table, print_table
from seqzoo.mixers import state_bytes
from seqzoo.model import LanguageModel, params
from seqzoo.tasks.base import Task

STEPS_COUNTED = 200_000  # about 0.2 s


class GridPoint(NamedTuple):
    """The experiments of one label, which differ in learning rate and seed only, and their cost."""

    label: str
    experiments: tuple[config.Experiment, ...]
    parameters: int
    state_bytes: int  # decode memory per row at the task's longest length
    steps: int  # of one experiment, at most
    tokens: int  # of training, for one experiment, at most; beyond STEPS_COUNTED steps in proportion


def group_by_label(chosen: config.Config) -> dict[str, tuple[config.Experiment, ...]]:
    """The experiments by label; those that differ only in learning rate and seed share a label."""
    if isinstance(chosen, config.Experiment):
        return {next(iter(short_names([", ".join(chosen.model.layers)]).values())): (chosen,)}
    groups: dict[str, tuple[config.Experiment, ...]] = {}
    points = list(chosen.experiments())
    for label, (_, experiment) in zip(labels(chosen, points), points, strict=True):
        groups[label] = (*groups.get(label, ()), experiment)
    return groups


def check(chosen: config.Config) -> None:
    """Raises ValueError if an experiment does not fit its task, model or devices, or a comparison has nothing to rank by."""
    from seqzoo import training

    for label, (experiment, *_) in group_by_label(chosen).items():
        training.check(experiment)
        if isinstance(chosen, config.Comparison) and not tasks.registry.create(experiment.task).eval_sets():
            raise ValueError(
                f"{label}: {experiment.task} evaluates nothing to rank by; wanted evaluation sets, such as held_out=0.05"
            )


def grid_points(chosen: config.Config) -> list[GridPoint]:
    """The grid points in the order of the experiments, one per label.

    Nothing is allocated, and equal models are built once. Devices are not checked: a grid can be listed on a machine that could not
    run it.

    Raises:
      ValueError: a model cannot be built; the message names the setting.
    """
    from seqzoo.training import build

    models: dict[Any, LanguageModel] = {}
    tokens: dict[Any, int] = {}
    found = []
    for label, experiments in group_by_label(chosen).items():
        first = experiments[0]
        task = tasks.registry.create(first.task)
        shape = (first.model, task.vocab_size)
        if shape not in models:
            models[shape] = nnx.eval_shape(lambda first=first, task=task: build(first.model, task, jax.random.key(0)))
        length = (first.task, first.training.steps)
        if length not in tokens:
            tokens[length] = _tokens(task, first.training.steps)
        found.append(
            GridPoint(
                label,
                experiments,
                params.count(params.split(models[shape])[1]),
                state_bytes(models[shape], task.max_length),
                first.training.steps,
                tokens[length],
            )
        )
    return found


def _tokens(task: Task, steps: int) -> int:
    """Tokens of so many steps; of a longer run than is counted step by step, in proportion."""
    counted = min(steps, STEPS_COUNTED)
    return sum(spec.batch * spec.length for spec in map(task.spec, range(counted))) * steps // counted


def show(chosen: config.Config, console: Console) -> None:
    """Prints the grid points of a comparison, or the one of an experiment, and the total number of runs and tokens."""
    grid = grid_points(chosen)
    several = any(len(point.experiments) > 1 for point in grid)
    table = new_table(chosen.name)
    table.add_column("", overflow="fold")
    for name in (*(["runs"] if several else []), "parameters", "state bytes", "steps", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in grid:
        runs = [f"{len(point.experiments)}"] if several else []
        numbers = (point.parameters, point.state_bytes, point.steps, point.tokens)
        table.add_row(Text.assemble(("● ", colour(point.label)), point.label), *runs, *(f"{number:,}" for number in numbers))
    print_table(console, table)
    runs = [experiment for point in grid for experiment in point.experiments]
    total = sum(point.tokens * len(point.experiments) for point in grid)
    lines = [f"Runs: {len(runs)}, with {total:,} tokens in all." + " Runs of one line differ in learning rate and seed." * several]
    lines += ["State bytes: decode memory per row at the task's longest length. Steps and tokens: for one run."]
    stops = (experiment.training.stop_above for experiment in runs)
    if levels := sorted({level for level in stops if level is not None}):
        lines += [f"Runs stop early when an evaluation's accuracy is above {', '.join(f'{level:g}' for level in levels)}."]
    if any(experiment.training.patience is not None for experiment in runs):
        lines += ["Runs stop early at a plateau (training.patience)."]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
