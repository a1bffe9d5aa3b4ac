"""The runs of a comparison: one experiment after another, each in its own folder; a finished one is not repeated."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from seqzoo import config
from seqzoo.compare.report import REPORT
from seqzoo.compare.results import write_figures, write_results
from seqzoo.compare.summary import LAYERS, Run, label_of, summarise, value_label, varied_axes
from seqzoo.compare.tables import caption, print_line, table
from seqzoo.data.json_files import DamagedFile, read_json

RUNS = "runs"


def run(
    comparison: config.Comparison,
    folder: str | Path,
    *,
    console: Console | None = None,
    run: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Trains every experiment of a comparison that has no result yet, and writes results, report and figures.

    The folder receives config.json, one folder per experiment under runs/, and after each experiment results.json, results.csv and
    report.md, at the end also learning_curves.png and, with several evaluation sets, eval_sets.png. A second call continues an
    interrupted comparison. An experiment whose loss is not finite is recorded as diverged, and the other experiments run.

    Args:
      comparison: base and axes.
      folder: a new folder, or one that an earlier call with the same comparison left.
      console: where to print; None is standard output.
      run: function that trains one experiment; None: `seqzoo.training.train(experiment, folder, console=console)`.
    Returns:
      The content of results.json.
    Raises:
      ValueError: the folder holds something else; nothing is written.
    """
    from seqzoo import training

    console = console or Console()
    train = run or training.train
    folder = _open_folder(Path(folder), comparison)
    points = list(comparison.experiments())
    runs = [_new_run(comparison, number, len(points), *each) for number, each in enumerate(points)]
    for number, (_, experiment) in enumerate(points):
        runs[number] = known = _with_summary(runs[number], folder)
        if known.finished or known.problem:
            continue
        print_line(console, f"[{number + 1}/{len(points)}] {known.name}")
        try:
            runs[number] = known._replace(summary=train(experiment, folder / RUNS / known.name, console=console))
        except training.Diverged as error:
            runs[number] = known._replace(problem=str(error))
        write_results(folder, comparison, runs)
    results = write_results(folder, comparison, runs)
    write_figures(folder, runs)
    console.print(table(summarise(runs), runs, comparison.name))
    print_line(console, caption(runs))
    for each in runs:
        if each.problem:
            print_line(console, f"{each.name} has no result: {each.problem}")
    print_line(console, f"report: {folder / REPORT}")
    return results


def _open_folder(folder: Path, comparison: config.Comparison) -> Path:
    """Creates or opens the comparison's folder, and writes its config.json."""
    from seqzoo.data.atomic_io import write_text

    path = folder / "config.json"
    if path.exists():
        # Compared as JSON, which has no tuples.
        if read_json(path) != json.loads(comparison.model_dump_json()):
            raise ValueError(
                f"{folder} holds another comparison or a run; wanted a new folder, or the same settings as its config.json"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} has no config.json but is not empty; wanted a new folder, or the folder of a comparison to continue"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, comparison.model_dump_json(indent=2) + "\n")
    return folder


def _new_run(comparison: config.Comparison, number: int, count: int, point: dict[str, Any], experiment: config.Experiment) -> Run:
    axes = varied_axes(comparison)
    parts = (experiment.model.layers if axis == LAYERS else [value_label(comparison, point, axis)] for axis in axes)
    slug = "-".join(re.sub(r"[^\w=.,+]+", "_", ",".join(each)).strip("_") for each in parts) or "only"
    return Run(
        name=f"{number:0{len(str(count - 1))}d}-{slug}"[:100],
        label=label_of(comparison, point, experiment.model.layers),
        point=point,
        rate=experiment.optimizer.learning_rate,
        seed=experiment.training.seed,
        summary={},
    )


def _with_summary(run: Run, folder: Path) -> Run:
    """The run with the summary that an earlier call wrote."""
    from seqzoo.training.run.metrics import read_summary

    try:
        summary = read_summary(folder / RUNS / run.name)
    except DamagedFile as error:  # one damaged member does not end the comparison
        return run._replace(problem=str(error))
    return run._replace(summary=summary, problem=summary.get("stopped"))
