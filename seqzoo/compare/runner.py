"""The comparison under way: one experiment after another, each in a folder of its own, none of them twice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from seqzoo import config
from seqzoo.compare import output
from seqzoo.compare.summary import LAYERS, Run, label_of, part, several, summarise

RUNS = "runs"


def run(
    comparison: config.Comparison,
    folder: str | Path,
    *,
    console: Console | None = None,
    run: Callable[..., dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Runs every experiment of a comparison that has no result yet, and writes what they say together.

    The folder receives config.json, one folder per experiment under runs/, and after each experiment results.json, results.csv and
    report.md, at the end also learning_curves.png and, of several slices, slices.png. Called again, after an interruption or not,
    it goes on where it stands. An experiment whose numbers are no longer finite is recorded as diverged, and the others go on.

    Args:
      comparison: base and axes.
      folder: a new folder, or one that an earlier call with the same comparison left.
      console: where to print; None is standard output.
      run: what trains one experiment, as `seqzoo.training.run(experiment, folder, console=console)`; None: that.
    Returns:
      What is also in results.json.
    Raises:
      ValueError: the folder holds something else; nothing is written then.
    """
    from seqzoo import training

    console = console or Console()
    train = run or training.run
    folder = _enter(Path(folder), comparison)
    points = list(comparison.experiments())
    runs = [_planned(comparison, number, len(points), *each) for number, each in enumerate(points)]
    for number, (_, experiment) in enumerate(points):
        runs[number] = known = _known(runs[number], folder)
        if known.finished or known.problem:
            continue
        output.say(console, f"[{number + 1}/{len(points)}] {known.name}")
        try:
            runs[number] = known._replace(summary=train(experiment, folder / RUNS / known.name, console=console))
        except training.Diverged as error:
            runs[number] = known._replace(problem=str(error))
        output.write_numbers(folder, comparison, runs)
    results = output.write_numbers(folder, comparison, runs)
    output.write_pictures(folder, runs)
    console.print(output.table(summarise(runs), runs, comparison.name))
    output.say(console, output.caption(runs))
    for each in runs:
        if each.problem:
            output.say(console, f"{each.name} has no result: {each.problem}")
    output.say(console, f"report: {folder / output.REPORT}")
    return results


def _enter(folder: Path, comparison: config.Comparison) -> Path:
    """Opens the folder and records the comparison in it."""
    from seqzoo.data.atomic_io import write_text

    path = folder / "config.json"
    if path.exists():
        # Both by way of JSON, which has no tuples.
        if json.loads(path.read_text()) != json.loads(comparison.model_dump_json()):
            raise ValueError(
                f"{folder} holds another comparison or a run; wanted a new folder, or the same settings as its config.json"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} has no config.json but is not empty; wanted a new folder, or that of a comparison to go on with"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, comparison.model_dump_json(indent=2) + "\n")
    return folder


def _planned(comparison: config.Comparison, number: int, count: int, point: dict[str, Any], experiment: config.Experiment) -> Run:
    parts = (experiment.model.layers if axis == LAYERS else [part(comparison, point, axis)] for axis in several(comparison))
    slug = "-".join(re.sub(r"[^\w=.,+]+", "_", ",".join(each)).strip("_") for each in parts) or "only"
    return Run(
        name=f"{number:0{len(str(count - 1))}d}-{slug}"[:100],
        label=label_of(comparison, point, experiment.model.layers),
        point=point,
        rate=experiment.optimizer.learning_rate,
        seed=experiment.training.seed,
        summary={},
    )


def _known(run: Run, folder: Path) -> Run:
    """The run with what an earlier call left of it."""
    path = folder / RUNS / run.name / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    return run._replace(summary=summary, problem=summary.get("stopped"))
