"""Dry run of a comparison: its grid points with parameters, memory, state bytes, FLOPs, steps and tokens, from abstract shapes."""

from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from seqzoo import config, tasks
from seqzoo.compare import sizing
from seqzoo.compare.colours import colour
from seqzoo.compare.names import short_names
from seqzoo.compare.summary import labels
from seqzoo.compare.tables import format_matched, new_table, print_table
from seqzoo.config.comparison import RATE, SHAPE
from seqzoo.tasks.base import Task

STEPS_COUNTED = 200_000  # about 0.2 s


class GridPoint(NamedTuple):
    """The experiments of one label and one model, which differ in axes of choice and seed only, and their cost."""

    label: str
    shape: str  # of the mixers whose settings were solved for a budget, else ""
    experiments: tuple[config.Experiment, ...]
    parameters: int
    state_bytes: int  # decode memory per row at the task's longest length
    flops: int  # forward, per token of such a row
    point: dict[str, Any]  # of the first of them; in a comparison with budgets with "matched", the measure of the model
    steps: int  # of one experiment, at most
    tokens: int  # of training, for one experiment, at most; beyond STEPS_COUNTED steps in proportion


def group_by_label(chosen: config.Config) -> dict[str, tuple[config.Experiment, ...]]:
    """The experiments by label; those that differ only in axes of choice, shape and seed share a label."""
    return {label: tuple(experiment for _, experiment in points) for label, points in _points(chosen).items()}


def _points(chosen: config.Config) -> dict[str, list[tuple[dict[str, Any], config.Experiment]]]:
    if isinstance(chosen, config.Experiment):
        return {next(iter(short_names([", ".join(chosen.model.layers)]).values())): [({}, chosen)]}
    groups: dict[str, list[tuple[dict[str, Any], config.Experiment]]] = {}
    points = list(chosen.experiments())
    for label, point in zip(labels(chosen, points), points, strict=True):
        groups.setdefault(label, []).append(point)
    return groups


def check(chosen: config.Config) -> None:
    """Raises ValueError if an experiment does not fit its task, model or devices, or a comparison has nothing to rank by.

    Also for a budget that no mixer can meet.
    """
    from seqzoo import training

    if isinstance(chosen, config.Comparison):
        sizing.not_matched(chosen)
    for label, (experiment, *_) in group_by_label(chosen).items():
        training.check(experiment)
        if isinstance(chosen, config.Comparison) and not tasks.registry.create(experiment.task).eval_sets():
            raise ValueError(
                f"{label}: {experiment.task} evaluates nothing to rank by; wanted evaluation sets, such as held_out=0.05"
            )


def grid_points(chosen: config.Config) -> list[GridPoint]:
    """The grid points in the order of the experiments, one per label and model.

    Nothing is allocated, and equal layers are built once. Devices are not checked: a grid can be listed on a machine that could not
    run it.

    Raises:
      ValueError: a model cannot be built; the message names the setting. A budget that no mixer can meet.
    """
    tokens: dict[Any, int] = {}
    found = []
    for label, points in _points(chosen).items():
        models: dict[Any, list[tuple[dict[str, Any], config.Experiment]]] = {}
        for point, experiment in points:
            models.setdefault((experiment.model, experiment.task, experiment.training.steps), []).append((point, experiment))
        for (model, spec, steps), members in models.items():
            task = tasks.registry.create(spec)
            cost = sizing.model_cost(model, model.layers, task.vocab_size, task.max_length)
            if (spec, steps) not in tokens:
                tokens[spec, steps] = _tokens(task, steps)
            point = members[0][0]
            found.append(
                GridPoint(
                    label,
                    point.get(SHAPE, ""),
                    tuple(experiment for _, experiment in members),
                    cost.parameters,
                    cost.state_bytes,
                    cost.flops // task.max_length,
                    point,
                    steps,
                    tokens[spec, steps],
                )
            )
    return found


def _tokens(task: Task, steps: int) -> int:
    """Tokens of so many steps; of a longer run than is counted step by step, in proportion."""
    counted = min(steps, STEPS_COUNTED)
    return sum(spec.batch * spec.length for spec in map(task.spec, range(counted))) * steps // counted


def show(chosen: config.Config, console: Console) -> None:
    """Prints the grid points of a comparison, or the one of an experiment, the mixers that have no budget, and the total number of
    runs and tokens."""
    match = chosen.match if isinstance(chosen, config.Comparison) else None
    unmatched = sizing.not_matched(chosen) if isinstance(chosen, config.Comparison) else []
    grid = grid_points(chosen)
    several, sized = any(len(point.experiments) > 1 for point in grid), any(point.shape for point in grid)
    table = new_table(chosen.name)
    table.add_column("", overflow="fold")
    if sized:
        table.add_column("settings", overflow="fold")
    matched = [f"matched:\n{sizing.SHORT[match]}"] if match else []
    numbers = ("parameters", "state bytes", "FLOPs/token", "steps", "tokens")
    for name in (*(["runs"] if several else []), *matched, *numbers):
        table.add_column(name, justify="right", no_wrap=True)
    for point in grid:
        cells: list[Any] = [Text.assemble(("● ", colour(point.label)), point.label), *([point.shape] if sized else [])]
        cells += [f"{len(point.experiments)}"] if several else []
        cells += [format_matched(point.point)] if match else []
        numbers = (point.parameters, point.state_bytes, point.flops, point.steps, point.tokens)
        table.add_row(*cells, *(f"{number:,}" for number in numbers))
    print_table(console, table)
    runs = [experiment for point in grid for experiment in point.experiments]
    total = sum(point.tokens * len(point.experiments) for point in grid)
    chosen_axes = [axis for axis in chosen.chosen if axis != RATE] if isinstance(chosen, config.Comparison) else []
    differ = f" Runs of one line differ in {', '.join(['learning rate', *chosen_axes])} and seed." if several else ""
    lines = [f"Runs: {len(runs)}, with {total:,} tokens in all.{differ}"]
    lines += sizing.explain(chosen, unmatched) if isinstance(chosen, config.Comparison) else []
    lines += ["State bytes: decode memory per row at the task's longest length. Steps and tokens: for one run."]
    stops = (experiment.training.stop_above for experiment in runs)
    if levels := sorted({level for level in stops if level is not None}):
        lines += [f"Runs stop early when an evaluation's accuracy is above {', '.join(f'{level:g}' for level in levels)}."]
    if isinstance(chosen, config.Comparison) and chosen.seeds_of_best:
        seeds, labels = ", ".join(map(str, chosen.seeds_of_best)), len({point.label for point in grid})
        lines += [
            f"A second stage adds {labels * len(chosen.seeds_of_best)} runs: seeds {seeds} at the best settings of each label."
        ]
    if any(experiment.training.patience is not None for experiment in runs):
        lines += ["Runs stop early at a plateau (training.patience)."]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
