"""From runs to rows of the table: the best learning rate of each label, median and range over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

from seqzoo.compare.names import short_names
from seqzoo.config import Comparison, Experiment
from seqzoo.config.comparison import BUDGET, LAYERS, MATCHED, RATE, SEED, SHAPE
from seqzoo.training.objective import Objective, objective_of


class Run(NamedTuple):
    """One experiment of a comparison and its result."""

    name: str  # of its folder inside the comparison's
    label: str  # everything of the point except axes of choice and seed
    point: dict[str, Any]  # {axis: value or name}, as `Comparison.experiments` gives it
    rate: float
    seed: int
    summary: dict[str, Any]  # as the trainer wrote it; {} if there is none
    problem: str | None = None  # reason for a missing result
    stage: int = 1  # 2: a further seed for the settings that the first stage chose (Comparison.seeds_of_best)
    more_steps: int | None = None  # its budget, if that is longer than the comparison's, because it was still learning

    @property
    def finished(self) -> bool:
        """True if the run has a result."""
        return bool(self.summary.get("finished")) and self.problem is None

    @property
    def settled(self) -> bool:
        """True if nothing is left to train: the run has the result of its whole budget, or has failed."""
        if not self.finished or self.more_steps is None:
            return self.finished or self.problem is not None
        return self.summary["ended"] != "budget" or self.summary["step"] >= self.more_steps


class Range(NamedTuple):
    """Median and range of a number over seeds."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.3f}" if self.low == self.high else f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


STILL_LEARNING = "still learning"


class Choice(NamedTuple):
    """One of the settings among which the best is chosen."""

    point: dict[str, Any]  # the axes in which the runs of a label differ, without the seed
    rate: float
    score: float  # median over seeds of the mean over evaluation sets; of a run without a result the worst


class Row(NamedTuple):
    """One line of the table: a label at its best choice of learning rate, shape ..."""

    label: str
    rate: float
    rates: dict[float, float]  # for every learning rate that finished, the score of its best choice
    score: Range  # of the mean over evaluation sets, of the numbers that `shown` names
    eval_sets: dict[str, Range]  # of the same numbers
    parameters: int
    state_bytes: int
    tokens_per_second: float | None
    runs: tuple[str, ...]  # of the best choice, by name; one for each seed with a result
    still_learning: bool = False  # one of these runs ended by its budget while its curve rose: the row is not ranked
    rates_still_learning: tuple[float, ...] = ()  # the learning rates with such a run
    point: Mapping[str, Any] = MappingProxyType({})  # of the runs that are shown, without the seed
    chosen: Mapping[str, Any] = MappingProxyType({})  # of it, the shape and other axes of choice, without the learning rate
    choices: tuple[Choice, ...] = ()  # all that finished

    @property
    def title(self) -> str:
        """The label as tables and figures show it, with the mark of a row that is not ranked."""
        return f"{self.label} ({STILL_LEARNING})" if self.still_learning else self.label


def labels(comparison: Comparison, points: Sequence[tuple[Mapping[str, Any], Experiment]]) -> list[str]:
    """Label of each grid point: short names of its mixers, or of their name on a named axis; then the values of the other varied
    axes, without axes of choice. Points that differ only in axes of choice and seed share one.

    Args:
      comparison: the comparison with these axes.
      points: all of `comparison.experiments()`.
    """
    heads = [axis for axis, paths in comparison.named.items() if LAYERS in paths]
    rest = [axis for axis in varied_axes(comparison) if axis not in (LAYERS, SEED, SHAPE, *comparison.chosen, *heads)]
    titles = [" ".join(point[axis] for axis in heads) or ", ".join(comparison.written_layers(point)) for point, _ in points]
    short = short_names(titles)
    values = ([value_label(comparison, point, axis) for axis in rest if axis in point] for point, _ in points)
    return [" ".join([short[title], *each]) for title, each in zip(titles, values, strict=True)]


def value_label(comparison: Comparison, point: Mapping[str, Any], axis: str) -> str:
    """Label of a point on one axis: the name on a named axis, a budget with its unit, else setting=value; "" without a value."""
    if axis == BUDGET and axis in point:
        return budget_label(point[axis], comparison.match)
    if axis == SHAPE or axis not in point:
        return point.get(axis, "")
    return point[axis] if axis in comparison.named else f"{axis.split('.')[-1]}={point[axis]}"


def budget_label(budget: int, match: str | None) -> str:
    """A budget with its unit: "4 KiB", "100,000 parameters", "1,000,000 FLOPs"."""
    if match == "state_bytes":
        return f"{budget / 1024:g} KiB" if budget % 256 == 0 else f"{budget:,} B"
    return f"{budget:,} {'FLOPs' if match == 'flops' else match}"


def varied_axes(comparison: Comparison) -> list[str]:
    """The axes with more than one value, and with budgets "budget", if there are several, and "shape"."""
    sized = [*([BUDGET] if len(comparison.budgets) > 1 else []), *([SHAPE] if comparison.match else [])]
    return [*(axis for axis, values in comparison.axes.items() if len(values) > 1), *sized]


def objective_of_runs(runs: Iterable[Run]) -> Objective:
    """The objective by which the runs are compared."""
    return objective_of(run.summary["final"] for run in runs if run.finished)


def shown(runs: Iterable[Run]) -> str:
    """The part of a summary whose numbers are shown: "test" if every result has one, else "final", which is validation."""
    finished = [run for run in runs if run.finished]
    return "test" if finished and all(run.summary["test"] for run in finished) else "final"


def shown_in_words(runs: Iterable[Run]) -> str:
    """The set and the objective of the numbers that are shown: "test accuracy"."""
    runs = list(runs)
    return f"{'test' if shown(runs) == 'test' else 'validation'} {objective_of_runs(runs).title}"


def chance_levels(runs: Iterable[Run]) -> dict[str, float | None]:
    """Chance level of each evaluation set, in order; NaN if runs disagree, None if there is none, as for text."""
    found: dict[str, set] = {}
    for run in runs:
        for name, result in run.summary.get("final", {}).items() if run.finished else ():
            found.setdefault(name, set()).add(result["chance"])
    return {name: next(iter(levels)) if len(levels) == 1 else math.nan for name, levels in found.items()}


def summarise(runs: Iterable[Run]) -> list[Row]:
    """One row per label, in the order of the runs: the best choice of learning rate, shape ... by the median over seeds.

    A choice counts by the median over its seeds of the objective (accuracy, or bits per byte for text) on validation at the end of
    training, averaged over evaluation sets; one choice is made for all evaluation sets, and ties go to the smaller learning rate,
    then to the first. A run without a result (it diverged, or has not run yet) counts as accuracy 0, or as 8 bits per byte, in that
    choice; the numbers shown do not contain it, and are those of the test sets where there are some. Labels without any result have
    no row. Runs of the second stage choose nothing.
    """
    runs = list(runs)
    objective, part = objective_of_runs(runs), shown(runs)
    score = lambda run: objective.mean(run.summary["final"]) if run.finished else objective.worst
    rows = []
    for label, choices in group_by_choice(runs).items():
        found = []
        for members in sorted(choices, key=lambda members: members[0].rate):
            choosing = [run for run in members if run.stage == 1]
            if any(run.finished for run in choosing):
                point, rate = _differing(members[0].point, choices), members[0].rate
                found.append((Choice(point, rate, median(map(score, choosing))), members))
        if not found:
            continue
        best, members = max(found, key=lambda each: objective.sort_key(each[0].score))
        by_rate: dict[float, list[float]] = {}
        for choice, _ in found:
            by_rate.setdefault(choice.rate, []).append(choice.score)
        finished = [run for run in members if run.finished]
        speeds = [run.summary["tokens_per_second"] for run in finished if run.summary["tokens_per_second"]]
        names = dict.fromkeys(name for run in finished for name in run.summary[part])
        eval_sets = {
            name: _range(run.summary[part][name][objective.name] for run in finished if name in run.summary[part]) for name in names
        }
        learning = [run for members in choices for run in members if run.finished and run.summary["still_learning"]]
        first = finished[0].summary
        rows.append(
            Row(
                label=label,
                point=without_seed(members[0].point),
                chosen={axis: value for axis, value in best.point.items() if axis not in (RATE, MATCHED)},
                rate=best.rate,
                rates={rate: max(scores, key=objective.sort_key) for rate, scores in by_rate.items()},
                choices=tuple(choice for choice, _ in found),
                score=_range(objective.mean(run.summary[part]) for run in finished),
                eval_sets=eval_sets,
                parameters=first["parameters"],
                state_bytes=first["state_bytes"],
                tokens_per_second=median(speeds) if speeds else None,
                runs=tuple(run.name for run in finished),
                still_learning=any(run in learning for run in finished),
                rates_still_learning=tuple(sorted({run.rate for run in learning})),
            )
        )
    return rows


def group_by_choice(runs: Iterable[Run]) -> dict[str, list[list[Run]]]:
    """The runs of each label, those that differ only in the seed together."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(run.label, {}).setdefault(repr((without_seed(run.point), run.rate)), []).append(run)
    return {label: list(choices.values()) for label, choices in groups.items()}


def without_seed(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point without the seed."""
    return {axis: value for axis, value in point.items() if axis != SEED}


def _differing(point: Mapping[str, Any], choices: Sequence[Sequence[Run]]) -> dict[str, Any]:
    """The values of a point on the axes in which choices differ."""
    same = lambda axis: all(repr(members[0].point.get(axis)) == repr(point[axis]) for members in choices)
    return {axis: value for axis, value in without_seed(point).items() if axis in (RATE, SHAPE) or not same(axis)}


def _range(values: Iterable[float]) -> Range:
    values = list(values)
    return Range(median(values), min(values), max(values))
