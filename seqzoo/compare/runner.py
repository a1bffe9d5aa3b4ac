"""The runs of a comparison: one experiment after another, each in its own folder; a finished one is not repeated."""

import functools
import gc
import itertools
import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from seqzoo import config
from seqzoo.compare.report import REPORT
from seqzoo.compare.results import write_figures, write_results
from seqzoo.compare.summary import LAYERS, Run, labels, summarise, value_label, varied_axes
from seqzoo.compare.tables import caption, print_line, print_table, table
from seqzoo.config.names import shortened
from seqzoo.data.json_files import DamagedFile, open_regular, read_json, require
from seqzoo.entry import resume_command

RUNS = "runs"
NAME_BYTES = 100  # of the folder of a run
FAILURE = "failure.txt"  # in the folder of a run that failed: the reason in one line; of an unexpected error also its traceback


def run(
    comparison: config.Comparison,
    folder: str | Path,
    *,
    console: Console | None = None,
    run: Callable[..., dict[str, Any]] | None = None,
    retry: bool = False,
) -> dict[str, Any]:
    """Trains every experiment of a comparison that has no result yet, and writes results, report and figures.

    The folder receives config.json, one folder per experiment under runs/, and after each experiment results.json, results.csv and
    report.md, at the end also learning_curves.png and, with several evaluation sets, eval_sets.png. A second call continues an
    interrupted comparison. An experiment that diverges or fails in any other way is recorded with its reason, and the other
    experiments run; only a signal and a failed write end the comparison.

    Args:
      comparison: base and axes.
      folder: a new folder, or one that an earlier call with the same comparison left.
      console: where to print; None is standard output.
      retry: whether experiments that failed before are tried again, each from its latest checkpoint.
      run: function that trains one experiment; None: `seqzoo.training.train(experiment, folder, console=console)`, with programs
        that runs share which differ only in learning rate, weight decay or seeds.
    Returns:
      The content of results.json.
    Raises:
      ValueError: the folder holds something else; nothing is written. LockedError: another process runs the comparison.
      WriteError: a file cannot be written.
    """
    from seqzoo import training
    from seqzoo.training.programs import Programs
    from seqzoo.training.run.lock import RunLock

    console = console or Console()
    folder = _open_folder(Path(folder), comparison)
    lock = RunLock(folder)  # two would count each other's runs as failed, and overwrite each other's results
    lock.acquire()
    if lock.note:
        print_line(console, f"note: {lock.note}")
    try:
        return _run_all(comparison, folder, console, run or functools.partial(training.train, programs=Programs()), retry)
    finally:
        lock.release()


def _run_all(
    comparison: config.Comparison, folder: Path, console: Console, train: Callable[..., dict[str, Any]], retry: bool
) -> dict[str, Any]:
    from seqzoo import training

    points = list(comparison.experiments())
    named = enumerate(zip(labels(comparison, points), points, strict=True))
    runs = [_new_run(comparison, number, len(points), label, *point) for number, (label, point) in named]
    for number, (_, experiment) in enumerate(points):
        runs[number] = known = _with_summary(runs[number], folder)
        if known.finished or (known.problem and not retry):
            continue
        place = folder / RUNS / known.name
        print_line(console, f"[{number + 1}/{len(points)}] {known.name}")
        try:
            if known.problem:
                _prepare_retry(place)
            runs[number] = known._replace(summary=train(experiment, place, console=console), problem=None)
        except training.WriteError:  # it would hit the other experiments too
            raise
        except Exception as error:  # any: an experiment may run code of the user
            runs[number] = known._replace(problem=_record_failure(place, error))
            print_line(console, f"{known.name} failed: {runs[number].problem}")
        write_results(folder, comparison, runs)
    results = write_results(folder, comparison, runs)
    write_figures(folder, runs)
    print_table(console, table(summarise(runs), runs, comparison.name))
    print_line(console, caption(runs))
    for each in runs:
        if each.problem:
            print_line(console, f"{each.name} has no result: {each.problem}")
    if any(each.problem for each in runs):
        print_line(console, f"to try them again: {resume_command(folder)} --retry")
    print_line(console, f"report: {folder / REPORT}")
    return results


def _record_failure(place: Path, error: Exception) -> str:
    """Writes the reason of a failure into the folder of its run, and returns it in one line."""
    from seqzoo import training
    from seqzoo.data.atomic_io import write_errors, write_text
    from seqzoo.training.run.lock import LockedError

    expected = isinstance(error, ValueError | OSError | training.Diverged | training.CheckpointError | LockedError)
    reason = " ".join(str(error).split())[:500]
    problem = reason if expected and reason else f"{type(error).__name__}: {reason}; see {place / FAILURE}"
    if not place.exists() or place.is_dir():  # else a file is in the place of the folder
        with write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        trace = "" if expected else "\n" + "".join(traceback.format_exception(error))
        write_text(place / FAILURE, f"{problem}\n{trace}")
    traceback.clear_frames(error.__traceback__)  # arrays in local variables take memory that the next experiment may need
    gc.collect()
    return problem


def _prepare_retry(place: Path) -> None:
    """Forgets a failure. A folder that cannot be continued, because it holds no config.json yet, is set aside."""
    from seqzoo.data.atomic_io import write_errors

    with write_errors(place):
        if place.is_dir():
            (place / FAILURE).unlink(missing_ok=True)
        if place.exists() and not (place / "config.json").is_file() and not (place.is_dir() and not any(place.iterdir())):
            aside = next(
                path for number in itertools.count(1) if not (path := place.with_name(f"{place.name}.failed{number}")).exists()
            )
            place.rename(aside)


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


def _new_run(
    comparison: config.Comparison, number: int, count: int, label: str, point: dict[str, Any], experiment: config.Experiment
) -> Run:
    axes = varied_axes(comparison)
    parts = (experiment.model.layers if axis == LAYERS else [value_label(comparison, point, axis)] for axis in axes)
    slug = "-".join(re.sub(r"[^\w=.,+]+", "_", ",".join(each)).strip("_") for each in parts) or "only"
    return Run(
        name=shortened(f"{number:0{len(str(count - 1))}d}-{slug}", NAME_BYTES),
        label=label,
        point=point,
        rate=experiment.optimizer.learning_rate,
        seed=experiment.training.seed,
        summary={},
    )


def _with_summary(run: Run, folder: Path) -> Run:
    """The run with the summary, or the reason of its failure, that an earlier call wrote."""
    from seqzoo.training.run import metrics

    place = folder / RUNS / run.name
    try:
        summary = metrics.read_summary(place)
        if summary.get("finished"):
            _check_summary(summary, place / metrics.SUMMARY)
            metrics.read(place / metrics.METRICS)  # of which the figures are made
        failure = place / FAILURE
        problem = summary.get("stopped")
        if problem is None and failure.exists() and not summary.get("finished"):
            with open_regular(failure) as file:
                problem = file.read(2000).decode(errors="replace").partition("\n")[0] or f"{failure} is empty"
    except (DamagedFile, OSError) as error:  # one damaged member does not end the comparison
        return run._replace(problem=str(error))
    return run._replace(summary=summary, problem=problem)


def _check_summary(summary: dict[str, Any], path: Path) -> None:
    """Raises DamagedFile unless a finished run's summary has what tables and figures are made of."""
    number, absent = (int, float), type(None)
    require(summary, str(path), state_bytes=int, tokens_per_second=(*number, absent))
    for part in ("final", "best", "test"):
        require(summary[part], f"{path}, {part}", **dict.fromkeys(summary[part], dict))
        for name, result in summary[part].items():
            require(result, f"{path}, {part} {name}", accuracy=number, loss=number, chance=(*number, absent), settings=dict)
