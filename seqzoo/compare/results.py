"""The files of a comparison: results.json, results.csv, report.md and the figures."""

import csv
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqzoo import config
from seqzoo.compare.report import CURVES, EVAL_SETS, REPORT, report
from seqzoo.compare.sizing import not_matched
from seqzoo.compare.summary import RATE, SEED, Run, chance_levels, objective_of_runs, shown, shown_in_words, summarise


def write_results(
    folder: Path, comparison: config.Comparison, runs: Sequence[Run], experiments: Mapping[str, config.Experiment]
) -> dict[str, Any]:
    """Writes results.json, results.csv and report.md, each atomically. Returns the content of results.json.

    experiments: of each run, by name.
    """
    from seqzoo.data.atomic_io import write_json, write_text

    rows, levels = summarise(runs), chance_levels(runs)
    results = {
        "name": comparison.name,
        "environment": _environment(),
        "config": comparison.model_dump(mode="json"),
        "objective": objective_of_runs(runs).name,
        "shown": shown(runs),
        "chance": {name: None if level is None or math.isnan(level) else level for name, level in levels.items()},
        "not_matched": [_plain(each) for each in not_matched(comparison)],
        "rows": [_plain(row) for row in rows],
        "runs": [
            {**_plain(run), "finished": run.finished, "config": experiments[run.name].model_dump(mode="json")} for run in runs
        ],
    }
    write_json(folder / "results.json", results)
    write_text(folder / "results.csv", as_csv(runs))
    write_text(folder / REPORT, report(comparison, runs, rows, levels, results["environment"]))
    return results


def write_figures(folder: Path, runs: Sequence[Run]) -> None:
    """Draws the figures for the runs at each label's best learning rate."""
    from seqzoo.compare import figures
    from seqzoo.training.run import metrics

    rows, objective, levels = summarise(runs), objective_of_runs(runs), chance_levels(runs)
    if not rows:
        return
    lines = {name: metrics.read(folder / "runs" / name / "metrics.jsonl") for row in rows for name in row.runs}
    figures.save(figures.learning_curves(rows, lines, objective, levels), folder / CURVES)
    settings = {name: result["settings"] for run in runs if run.finished for name, result in run.summary["final"].items()}
    if len(settings) > 1:
        figures.save(figures.eval_sets(rows, settings, objective, levels, shown_in_words(runs)), folder / EVAL_SETS)


def as_csv(runs: Sequence[Run]) -> str:
    """One line per finished run and evaluation set: the last evaluation, and as "test_..." the test set of that name."""
    objective = objective_of_runs(runs)
    axes = list(dict.fromkeys(path for run in runs for path in run.point))
    lines = [
        {
            **{"run": run.name, "label": run.label, "learning_rate": run.rate, "seed": run.seed},
            **{path: run.point.get(path, "") for path in axes if path not in (RATE, SEED)},
            **{"eval_set": name, objective.name: result[objective.name], "loss": result["loss"], "chance": result["chance"]},
            **{f"eval_set.{key}": value for key, value in result["settings"].items()},
            **{f"test_{key}": run.summary["test"][name][key] for key in (objective.name, "loss") if name in run.summary["test"]},
            f"best_{objective.name}": run.summary["best"].get(name, result)[objective.name],
            **{key: run.summary[key] for key in ("parameters", "state_bytes", "tokens_per_second", "step")},
            **{key: run.summary[key] for key in ("ended", "still_learning")},
        }
        for run in runs
        if run.finished
        for name, result in run.summary["final"].items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


@functools.cache
def _environment() -> dict[str, Any]:
    """That of this process, found once: git takes longer than all else here."""
    from seqzoo.training import environment

    return environment()


def _plain(value: Any) -> Any:
    """Named tuples as dicts, recursively, for JSON."""
    if hasattr(value, "_asdict"):
        return {key: _plain(each) for key, each in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
