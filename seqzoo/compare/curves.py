"""Curves of any runs in one figure: `train.py plot RUN...`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqzoo import config
from seqzoo.compare.names import differing_settings, short_names
from seqzoo.compare.summary import LAYERS
from seqzoo.specs import did_you_mean

POSITIONS = "position_loss"

Lines = Sequence[dict[str, Any]]  # of a metrics.jsonl


def draw(folders: Iterable[str | Path], metric: str = "loss", x: str = "step"):
    """Figure of the curves of runs, and of all runs of a comparison. Reads metrics.jsonl, also of unfinished runs.

    Args:
      folders: run folders and comparison folders.
      metric: a name in metrics.jsonl: "loss", "accuracy", "gradient_norm" and others; with module norms also
        "gradient_norms/layers/0/mixer"; "position_loss" is drawn for the last evaluation.
      x: "step", "tokens" or "seconds".
    Returns:
      A matplotlib figure.
    Raises:
      FileNotFoundError: not a run folder. ValueError: no run has that metric, or one lacks x; the known names are listed.
    """
    from seqzoo.compare import figures
    from seqzoo.training.run import metric_writers, metrics

    runs = find(folders)
    names = labels(runs)
    lines = {names[path]: [metric_writers.flatten(line) | line for line in metrics.read(path / "metrics.jsonl")] for path in runs}
    _check(lines, metric, x)
    return figures.by_position(_last_by_position(lines)) if metric == POSITIONS else figures.curves(lines, metric, x)


def find(folders: Iterable[str | Path]) -> dict[Path, config.Experiment]:
    """The run folders in order; a comparison gives its runs. Raises FileNotFoundError: no run, or a comparison without runs."""
    from seqzoo.training import load_config

    runs = {}
    for folder in map(Path, folders):
        held = load_config(folder)
        if isinstance(held, config.Experiment):
            runs[folder] = held
            continue
        inside = {path.parent: load_config(path.parent) for path in sorted(folder.glob("runs/*/config.json"))}
        if not inside:
            raise FileNotFoundError(f"{folder} holds a comparison without any run yet")
        runs |= inside
    return runs


def labels(runs: Mapping[Path, config.Experiment]) -> dict[Path, str]:
    """Label of each run: short names of its mixers, every other setting in which the runs differ, and its folder if labels are
    equal."""
    titles = [", ".join(experiment.model.layers) for experiment in runs.values()]
    compared = lambda name: name != LAYERS and not name.startswith("run.")
    settings = [{name: value for name, value in config.settings(each).items() if compared(name)} for each in runs.values()]
    short, others = short_names(titles), differing_settings(settings)
    names = {path: " ".join([short[title], *more.values()]) for path, title, more in zip(runs, titles, others, strict=True)}
    taken = list(names.values())
    return {path: name if taken.count(name) == 1 else f"{name} in {path}" for path, name in names.items()}


def _check(lines: Mapping[str, Lines], metric: str, x: str) -> None:
    """Raises ValueError unless some run has the metric, and all lines that have it have x."""
    numbers = lambda line: {key for key, value in line.items() if isinstance(value, int | float)} - {"step", "tokens", "seconds"}
    known = sorted(set().union(*(numbers(line) | ({POSITIONS} & line.keys()) for run in lines.values() for line in run)))
    if metric not in known:
        found = f"no run has a metric {metric!r}.{did_you_mean(metric, known)}"
        raise ValueError(f"{found} Metrics of {', '.join(lines)}: {', '.join(known) or 'none yet'}")
    for label, run in lines.items():
        if any(x not in line for line in run if metric in line):
            raise ValueError(f"the metrics of {label} have no {x!r}; wanted --x step")


def _last_by_position(lines: Mapping[str, Lines]) -> dict[str, dict[str, Any]]:
    """The lines with `position_loss` of each run's last evaluation, by label; if there are several evaluation sets, it names the
    evaluation set."""
    found = {}
    for label, run in lines.items():
        having = [line for line in run if POSITIONS in line]
        last = [line for line in having if line["step"] == having[-1]["step"]]
        found |= {label if len(last) == 1 else f"{label} {line['eval_set']}": line for line in last}
    return found
