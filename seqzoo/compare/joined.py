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
from seqzoo.compare.store import check_summary
from seqzoo.compare.summary import (
    LAYERS,
    RATE,
    SEED,
    STILL_LEARNING,
    Range,
    Row,
    Run,
    chance_levels,
    objective_of_runs,
    shown_in_words,
    summarise,
)
from seqzoo.compare.tables import caption
from seqzoo.data.json_files import DamagedFile
from seqzoo.training.objective import Objective

Lines = Sequence[dict[str, Any]]  # of a metrics.jsonl
NEUTRAL = ("run.", "mesh.")  # sections of settings that change no result
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

    A run whose summary or metrics are damaged is a problem of that run alone.
    Raises:
      FileNotFoundError: not a run folder, or a comparison without any run yet. DamagedFile, ConfigError: a damaged config.json.
    """
    folders = [Path(folder) for folder in folders]
    found = curves.find(folders)
    labels = _labels(list(found.values()))
    members = [_member(folder, experiment, label) for (folder, experiment), label in zip(found.items(), labels, strict=True)]
    runs = [member.run for member in members]
    by_label: dict[str, list[Member]] = {}
    for member in members:
        by_label.setdefault(member.run.label, []).append(member)
    rows = {row.label: row for row in summarise(runs)}
    series = _series([group[0].experiment for group in by_label.values()])
    entries = [_entry(group, rows.get(label), line) for (label, group), line in zip(by_label.items(), series, strict=True)]
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


def _settings(experiment: config.Experiment, without: Iterable[str] = ()) -> dict[str, Any]:
    """The settings that tell labels apart besides the layers."""
    dropped = {LAYERS, RATE, SEED, *without}
    settings = config.settings(experiment)
    return {name: value for name, value in settings.items() if name not in dropped and not name.startswith(NEUTRAL)}


def _labels(experiments: Sequence[config.Experiment]) -> list[str]:
    titles = [", ".join(each.model.layers) for each in experiments]
    short = short_names(titles)
    others = differing_settings([_settings(each) for each in experiments])
    return [" ".join([short[title], *more.values()]) for title, more in zip(titles, others, strict=True)]


def _series(experiments: Sequence[config.Experiment]) -> list[str]:
    """Name of the curve against state size of each experiment: its label, as if the sizes were not there."""
    titles = [without_sizes(", ".join(each.model.layers)) for each in experiments]
    short = short_names(titles)
    others = differing_settings([_settings(each, SIZES) for each in experiments])
    return [" ".join([short[title], *more.values()]) for title, more in zip(titles, others, strict=True)]


def _member(folder: Path, experiment: config.Experiment, label: str) -> Member:
    from seqzoo.training.run import metrics

    summary, lines, problem = {}, [], None
    try:
        summary = metrics.read_summary(folder)
        if summary.get("finished"):
            check_summary(summary, folder / metrics.SUMMARY)
        lines = metrics.read(folder / metrics.METRICS)
        problem = summary.get("stopped")
    except (DamagedFile, OSError) as error:
        problem = str(error)
    run = Run(str(folder), label, {}, experiment.optimizer.learning_rate, experiment.training.seed, summary, problem)
    return Member(folder, experiment, run, lines)


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
