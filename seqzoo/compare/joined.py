"""Runs of any folders side by side, finished or not: what `train.py report` shows. Read from the run folders alone."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from seqzoo import config
from seqzoo.compare import curves
from seqzoo.compare.colours import family, mixers_in
from seqzoo.compare.figures import SizePoint
from seqzoo.compare.names import differing_settings, short_names, without_sizes
from seqzoo.compare.store import Store, check_summary
from seqzoo.compare.summary import (
    BUDGET,
    LAYERS,
    MATCHED,
    RATE,
    SEED,
    SHAPE,
    STILL_LEARNING,
    Range,
    Row,
    Run,
    budget_label,
    chance_levels,
    objective_of_runs,
    shown_in_words,
    summarise,
)
from seqzoo.compare.tables import caption
from seqzoo.data.json_files import DamagedFile
from seqzoo.training import load_config
from seqzoo.training.objective import Objective

Lines = Sequence[dict[str, Any]]  # of a metrics.jsonl
NEUTRAL = ("run.", "mesh.")  # sections of settings that change no result
STEPS = "training.steps"
SIZES = ("model.d_model", "model.depth")  # settings of an experiment that make a state larger


class Member(NamedTuple):
    """One run folder."""

    folder: Path
    experiment: config.Experiment
    run: Run
    lines: Lines


class Entry(NamedTuple):
    """The runs of one label: its row in the table and its curve in the figures."""

    label: str
    spec: str  # of all layers, in full
    families: tuple[str, ...]
    series: str  # of the figure against state size: the label without what makes the state larger
    row: Row | None  # None before the first result
    shown: tuple[Member, ...]  # at the best learning rate; before the first result all that began
    status: str  # "finished", "still learning", "step 10 of 500" ...

    def value(self, eval_set: str | None) -> Range | None:
        """The objective in an evaluation set; None: its mean over all. None without a result."""
        return self.row and (self.row.score if eval_set is None else self.row.eval_sets.get(eval_set))

    @property
    def still_learning(self) -> bool:
        """True if a run's curve still rose when its training ended: such a row has no rank."""
        return self.row is not None and self.row.still_learning


class Joined(NamedTuple):
    """All entries, the best first, then those still learning and those without a result; and what they have in common."""

    title: str
    entries: tuple[Entry, ...]
    objective: Objective
    levels: dict[str, float | None]  # chance of each evaluation set
    settings: dict[str, dict[str, Any]]  # of each evaluation set
    problems: dict[str, str]  # by run folder
    task: str
    runs: tuple[Run, ...]  # all that have a folder

    def ranks(self) -> dict[str, int]:
        """Place of each label by its mean over evaluation sets, from 1. Entries without a result or still learning have none."""
        ranked = [(entry.label, entry.row.score.median) for entry in self.entries if entry.row and not entry.still_learning]
        ranked.sort(key=lambda pair: self.objective.sort_key(pair[1]), reverse=True)
        return {label: place for place, (label, _) in enumerate(ranked, 1)}

    def is_best(self, entry: Entry, eval_set: str | None) -> bool:
        """True if no ranked entry has a better median; `eval_set` None: of the mean over evaluation sets."""
        ranked = [value for each in self.entries if not each.still_learning and (value := each.value(eval_set))]
        best = max((self.objective.sort_key(value.median) for value in ranked), default=None)
        value = entry.value(eval_set)
        return value in ranked and value is not None and self.objective.sort_key(value.median) == best

    def in_words(self) -> str:
        """One sentence on the number of runs."""
        finished, count = sum(run.finished for run in self.runs), len(self.runs)
        return f"{finished} of {count} runs that have begun have a result."

    @property
    def what(self) -> str:
        """Set and objective of the numbers: "test accuracy"."""
        return shown_in_words(self.runs)

    def caption(self) -> str:
        """One sentence on the numbers of a row."""
        return caption(self.runs)

    def chance(self, eval_set: str | None = None) -> float | None:
        """The chance level of an evaluation set, or the mean over all; None where one has none, or runs disagree."""
        levels = list(self.levels.values()) if eval_set is None else [self.levels.get(eval_set)]
        known = [level for level in levels if level is not None and not math.isnan(level)]
        return fmean(known) if known and len(known) == len(levels) else None

    def sizes(self, eval_set: str | None = None) -> "dict[str, list[tuple[Entry, SizePoint]]]":
        """The points of the figure against state size, by series; `eval_set` None: the mean over evaluation sets."""
        found: dict[str, list[tuple[Entry, SizePoint]]] = {}
        for entry in self.entries:
            value = entry.value(eval_set)
            if entry.row and value and entry.row.state_bytes > 0:
                point = SizePoint(entry.row.state_bytes, value, entry.still_learning)
                found.setdefault(entry.series, []).append((entry, point))
        return found


def read(folders: Iterable[str | Path]) -> Joined:
    """The runs of run folders and comparison folders; equal experiments that differ in learning rate and seed are one entry.

    Of a comparison with budgets or axes of choice, each entry is at the best choice by validation, as in its own table.

    A run whose summary or metrics are damaged is a problem of that run alone.
    Raises:
      FileNotFoundError: not a run folder, or a comparison without any run yet. DamagedFile, ConfigError: a damaged config.json.
    """
    folders = [Path(folder) for folder in folders]
    found = _find(folders)
    labels = _names(found, sizes=True)
    series = dict(zip(labels, _names(found, sizes=False), strict=True))
    members = [_member(each, label) for each, label in zip(found, labels, strict=True)]
    runs = [member.run for member in members]
    by_label: dict[str, list[Member]] = {}
    for member in members:
        by_label.setdefault(member.run.label, []).append(member)
    rows = {row.label: row for row in summarise(runs)}
    entries = [_entry(group, rows.get(label), series[label]) for label, group in by_label.items()]
    objective = objective_of_runs(runs)
    entries.sort(key=lambda entry: _order(entry, objective))
    return Joined(
        title=", ".join(folder.absolute().name for folder in folders),
        entries=tuple(entries),
        objective=objective,
        levels=chance_levels(runs),
        settings={name: result["settings"] for run in runs if run.finished for name, result in run.summary["final"].items()},
        problems={run.name: run.problem for run in runs if run.problem},
        task="; ".join(dict.fromkeys(member.experiment.task for member in members)),
        runs=tuple(runs),
    )


class _Found(NamedTuple):
    """A run folder, before it has a label."""

    folder: Path
    experiment: config.Experiment
    run: Run  # its label and name are replaced
    layers: str  # as they are written, before a budget's settings are solved for
    budget: str  # in words; "" without one
    settings: dict[str, Any]  # those that tell labels apart, besides layers and budget


def _find(folders: Iterable[Path]) -> list[_Found]:
    """The run folders in order. Of a comparison's run, learning rate, shape and other axes of choice tell no labels apart."""
    known: dict[Path, tuple[Run, config.Experiment, config.Comparison]] = {}
    folders = list(folders)
    for folder, held in ((folder, load_config(folder)) for folder in folders):
        if isinstance(held, config.Comparison):
            store = Store(folder, held)
            known |= {store.place(run): (run, store.experiments[run.name], held) for run in store.runs()}
    found = []
    for folder, experiment in curves.find(folders).items():
        if folder in known:
            run, experiment, comparison = known[folder]
            found.append(_of_comparison(folder, run, experiment, comparison))
        else:
            run = _run_alone(folder, experiment)
            found.append(_Found(folder, experiment, run, ", ".join(experiment.model.layers), "", _settings(experiment)))
    return found


def _of_comparison(folder: Path, run: Run, experiment: config.Experiment, comparison: config.Comparison) -> _Found:
    changed = {axis: comparison.named.get(axis, {axis}) for axis in comparison.chosen}
    settings = _settings(experiment, set().union(*changed.values()))
    if STEPS in settings and STEPS not in comparison.varied:
        settings[STEPS] = comparison.base.training.steps  # also of a run that was continued for longer
    budget = budget_label(run.point[BUDGET], comparison.match) if BUDGET in run.point else ""
    choice = {axis: run.point[axis] for axis in (SHAPE, MATCHED, *changed) if axis in run.point and axis != RATE}
    layers = ", ".join(comparison.written_layers(run.point))
    return _Found(folder, experiment, run._replace(point=choice), layers, budget, settings)


def _run_alone(folder: Path, experiment: config.Experiment) -> Run:
    from seqzoo.training.run import metrics

    run = Run("", "", {}, experiment.optimizer.learning_rate, experiment.training.seed, {})
    try:
        summary = metrics.read_summary(folder)
        if summary.get("finished"):
            check_summary(summary, folder / metrics.SUMMARY)
        metrics.read(folder / metrics.METRICS)
    except (DamagedFile, OSError) as error:
        return run._replace(problem=str(error))
    return run._replace(summary=summary, problem=summary.get("stopped"))


def _settings(experiment: config.Experiment, without: Iterable[str] = ()) -> dict[str, Any]:
    dropped = {LAYERS, RATE, SEED, *without}
    settings = config.settings(experiment)
    return {name: value for name, value in settings.items() if name not in dropped and not name.startswith(NEUTRAL)}


def _names(found: Sequence[_Found], sizes: bool) -> list[str]:
    """Label of each run; without `sizes` the name of its curve against state size, which is the label without what enlarges it."""
    titles = [each.layers if sizes else without_sizes(each.layers) for each in found]
    short = short_names(titles)
    budgets = [each.budget if sizes and len({other.budget for other in found}) > 1 else "" for each in found]
    kept = lambda settings: {name: value for name, value in settings.items() if sizes or name not in SIZES}
    others = differing_settings([kept(each.settings) for each in found])
    parts = zip(titles, budgets, others, strict=True)
    return [" ".join([short[title], *filter(None, [budget]), *more.values()]) for title, budget, more in parts]


def _member(found: _Found, label: str) -> Member:
    from seqzoo.training.run import metrics

    try:
        lines = metrics.read(found.folder / metrics.METRICS)
    except (DamagedFile, OSError):  # which is the problem of the run
        lines = []
    return Member(found.folder, found.experiment, found.run._replace(name=str(found.folder), label=label), lines)


def _entry(group: Sequence[Member], row: Row | None, series: str) -> Entry:
    shown = [member for member in group if row and member.run.name in row.runs] or group
    first = shown[0].experiment
    named = mixers_in(", ".join(first.model.layers))
    return Entry(
        label=group[0].run.label,
        spec=", ".join(first.model.layers),
        families=tuple(dict.fromkeys(map(family, named))),
        series=series,
        row=row,
        shown=tuple(shown),
        status=_status(shown),
    )


def _order(entry: Entry, objective: Objective) -> tuple[bool, bool, float]:
    """A key that puts the better entry first."""
    return entry.row is None, entry.still_learning, -objective.sort_key(entry.row.score.median) if entry.row else 0.0


def _status(shown: Sequence[Member]) -> str:
    """The state of the runs of a row in words."""
    runs = [member.run for member in shown]
    if any(run.summary.get("still_learning") for run in runs):
        return STILL_LEARNING
    if all(run.finished for run in runs):
        ended = dict.fromkeys(run.summary.get("ended") or "finished" for run in runs)
        return ", ".join(map(str, ended))
    if any(run.problem for run in runs):
        return "no result"
    step = max((line["step"] for member in shown for line in member.lines), default=0)
    return f"at step {step} of {max(member.experiment.training.steps for member in shown)}"
