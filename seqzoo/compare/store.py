"""The folder of a comparison: its results, shared by any number of processes.

config.json           the comparison
store.json            number of the folder's format
runs/NAME/            one run; summary.json is its result, failure.txt the reason why it has none
budgets/NAME.json     more steps for a run that was still learning (continue_unfinished)
claims/NAME           locked by the process that trains the run (claims.py)
lock                  held for a moment by a process that opens the folder or writes the files below
results.json, results.csv, report.md, *.png    made from runs/, anew after every run

The run folders are the store, and there is no list of results beside them: a result is there as soon as the trainer has renamed its
summary.json into place, one process at a time trains a run, and nothing that could disagree with it is written elsewhere. All else
can be made again from it, and is replaced whole. A process can be killed at any moment; what it leaves is a run without a result,
which another process or a later call continues from its latest checkpoint.
"""

import contextlib
import gc
import itertools
import json
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqzoo import config
from seqzoo.compare import claims
from seqzoo.compare.claims import Claim
from seqzoo.compare.second_stage import Later, second_stage
from seqzoo.compare.shares import Shard, shard_of
from seqzoo.compare.summary import LAYERS, SEED, Run, labels, value_label, varied_axes
from seqzoo.config.names import shortened
from seqzoo.data.json_files import DamagedFile, open_regular, read_json, require
from seqzoo.training.hyperparameters import shared_key

FORMAT = 1
STORE = "store.json"
BUDGETS = "budgets"
RUNS = "runs"
NAME_BYTES = 100  # of the folder of a run
FAILURE = "failure.txt"  # in the folder of a run that failed: the reason in one line; of an unexpected error also its traceback
SET_ASIDE = "The folder of this run is damaged: --retry sets it aside and trains the run anew."  # second line of failure.txt
PATIENCE = 30.0  # seconds for another process to give back the lock of the folder, which takes it some milliseconds


class Store:
    """The runs of a comparison in its folder, as they are now. Made by `open_store`.

    Attributes:
      experiments: of every run, by name.
      keys: of every run, by name: equal for runs that share their compiled programs.
      shard: the part of the runs that this process trains; None: all.
    """

    def __init__(self, folder: Path, comparison: config.Comparison):
        self.folder, self.comparison = folder, comparison
        points = list(comparison.experiments())
        named = enumerate(zip(labels(comparison, points), points, strict=True))
        self._new = [_new_run(comparison, number, len(points), label, *point) for number, (label, point) in named]
        self.experiments = {run.name: experiment for run, (_, experiment) in zip(self._new, points, strict=True)}
        self.keys = {name: shared_key(experiment) for name, experiment in self.experiments.items()}
        self.shard: Shard | None = None
        self._mine = set(self.experiments)
        self._labels = {run.label for run in self._new}
        self._whole = bool(comparison.seeds_of_best)  # whether a label stays in one shard, which then can choose for it
        self._settled: dict[str, Run] = {}

    def take_shard(self, shard: Shard) -> None:
        """Leaves all runs but those of a shard to other processes.

        Runs that share programs stay together where that balances. With `seeds_of_best` runs of one label always do.
        """
        self.shard = shard
        labels = {run.name: run.label for run in self._new}
        self._mine = shard_of(list(labels), (labels if self._whole else self.keys).__getitem__, self._whole, shard)
        self._labels = {labels[name] for name in self._mine}

    def is_mine(self, run: Run) -> bool:
        """Tells if the run is of the shard of this process."""
        return run.name in self._mine or (run.stage == 2 and run.label in self._labels)

    def runs(self) -> list[Run]:
        """All runs with their results, or the reasons why they have none; those of the second stage as far as they are known."""
        first = [self._known(run) for run in self._new]
        later = [self._later(each) for each in second_stage(self.comparison, first, self.experiments)]
        return first + [self._known(run) for run in later]

    def _known(self, run: Run) -> Run:
        """The run with its result. A result that is not to change any more is read once."""
        run = run._replace(more_steps=self._budget(run))
        found = self._settled.get(run.name)
        if found is not None and found.more_steps == run.more_steps:
            return found
        found = self.read(run)
        if found.finished and found.settled:
            self._settled[run.name] = found
        return found

    def _budget(self, run: Run) -> int | None:
        """The longer budget of a run, which its experiment then has; None: it has that of the comparison."""
        path = self.folder / BUDGETS / f"{run.name}.json"
        if not path.exists():
            return None
        found = read_json(path)
        require(found, str(path), steps=int)
        experiment = self.experiments[run.name]
        if experiment.training.steps != found["steps"]:
            self.experiments[run.name] = changed = config.replace(experiment, {"training.steps": found["steps"]})
            self.keys[run.name] = shared_key(changed)
        return found["steps"]

    def continue_unfinished(self, steps: int | None) -> list[tuple[str, int, int]]:
        """Gives the runs that were still learning at the end of their budget a longer one, which the folder records.

        steps: training steps in all; None: twice those that each has done.
        Returns:
          The runs, as (name, steps done, steps of the new budget).
        Raises:
          ValueError: a run has as many steps already; nothing is written then.
        """
        from seqzoo.data.atomic_io import write_errors, write_json

        learning = [
            run for run in self.runs() if self.is_mine(run) and run.finished and run.settled and run.summary["still_learning"]
        ]
        longer = [(run.name, done := run.summary["step"], steps or 2 * done) for run in learning]
        if short := [f"{name} has done {done}" for name, done, wanted in longer if wanted <= done]:
            raise ValueError(f"--steps {steps}, but {', '.join(short)}; wanted more steps than that")
        with write_errors(self.folder / BUDGETS):
            (self.folder / BUDGETS).mkdir(exist_ok=True)
        for name, _, wanted in longer:
            write_json(self.folder / BUDGETS / f"{name}.json", {"steps": wanted})
        return longer

    def read(self, run: Run) -> Run:
        """The run with the summary, or the reason of its failure, in its folder."""
        from seqzoo.training.run import metrics

        place = self.place(run)
        try:
            summary = metrics.read_summary(place)
            if summary.get("finished"):
                check_summary(summary, place / metrics.SUMMARY)
                metrics.read(place / metrics.METRICS)  # of which the figures are made
            failure = place / FAILURE
            problem = summary.get("stopped")
            if problem is None and failure.exists() and not summary.get("finished"):
                with open_regular(failure) as file:
                    problem = file.read(2000).decode(errors="replace").partition("\n")[0] or f"{failure} is empty"
        except (DamagedFile, OSError) as error:  # one damaged member does not end the comparison
            return run._replace(problem=str(error))
        return run._replace(summary=summary, problem=problem)

    def _later(self, later: Later) -> Run:
        """A run of the second stage, whose experiment is then known."""
        first = self._new[later.number]
        run = _new_run(
            self.comparison, later.number, len(self._new), first.label, first.point | {SEED: later.seed}, later.experiment, 2
        )
        if run.name not in self.experiments:
            self.experiments[run.name], self.keys[run.name] = later.experiment, shared_key(later.experiment)
        return run

    def place(self, run: Run) -> Path:
        """The folder of a run."""
        return self.folder / RUNS / run.name

    def claim(self, run: Run) -> Claim | None:
        """Claims a run; None if another process has it."""
        try:
            step = read_json(self.place(run) / "saved.json", absent={}).get("step", -1)
        except (DamagedFile, OSError):
            step = -1
        return claims.claim(self.folder, run.name, step if isinstance(step, int) else -1)

    def busy(self, runs: list[Run]) -> set[str]:
        """The names of those runs that some process trains now, in this comparison or by itself."""
        from seqzoo.data.lock import is_locked
        from seqzoo.training.run.lock import LOCK

        held = lambda run: is_locked(self.folder / claims.CLAIMS / run.name) or is_locked(self.place(run) / LOCK)
        return {run.name for run in runs if held(run)}

    def record_failure(self, run: Run, error: Exception | str) -> str:
        """Writes the reason why a run has no result into its folder, and returns it in one line."""
        from seqzoo.data.atomic_io import write_errors, write_text

        place, trace = self.place(run), ""
        if isinstance(error, str):
            problem = error
        else:
            problem, trace = _reason(error, place)
        if not place.exists() or place.is_dir():  # else a file is in the place of the folder
            with write_errors(place):
                place.mkdir(parents=True, exist_ok=True)
            write_text(place / FAILURE, f"{problem}\n{trace}")
        return problem

    def retry(self) -> None:
        """Forgets failures: those runs have no result yet, and continue from their latest checkpoint.

        The folder of a run with damaged files, or without config.json, is set aside as NAME.failed1: the run begins anew. A run
        that another process trains is left alone.
        """
        for run in filter(self.is_mine, self.runs()):
            if run.problem and (claim := self.claim(run)):
                try:
                    self._forget(self.place(run))
                finally:
                    claim.release()
        self._settled = {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Context that one process at a time is in; without locks, or if another does not give it back, the process goes on."""
        from seqzoo.training.run.lock import LockedError, RunLock

        lock, end = RunLock(self.folder), time.monotonic() + PATIENCE
        while True:
            try:
                lock.acquire()
                break
            except LockedError:
                if time.monotonic() > end:
                    break
                time.sleep(0.02)
        try:
            yield
        finally:
            lock.release()

    def _forget(self, place: Path) -> None:
        from seqzoo.data.atomic_io import write_errors
        from seqzoo.training.run.metrics import SUMMARY

        with write_errors(place):
            if place.exists() and _is_damaged(place):
                aside = next(
                    path for number in itertools.count(1) if not (path := place.with_name(f"{place.name}.failed{number}")).exists()
                )
                place.rename(aside)
            elif place.is_dir():
                (place / FAILURE).unlink(missing_ok=True)
                (place / SUMMARY).unlink(missing_ok=True)  # of a run that diverged; made anew from its metrics


def open_store(folder: Path, comparison: config.Comparison) -> Store:
    """Creates the folder of a comparison, or opens it for one more process.

    Raises:
      ValueError: it holds something else, another comparison, or was written by another version; nothing is written then.
      WriteError: it cannot be written.
    """
    from seqzoo.data.atomic_io import write_errors, write_json, write_text
    from seqzoo.training.run.lock import LOCK

    path = folder / "config.json"
    if (
        not path.exists()
        and folder.exists()
        and not all(each.name == LOCK or each.name.startswith(STORE) for each in folder.iterdir())
    ):
        raise ValueError(
            f"{folder} has no config.json but is not empty; wanted a new folder, or the folder of a comparison to continue"
        )
    if path.exists():
        _check(folder, comparison)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder, comparison)
    with store.lock():  # two processes may begin at the same time
        if path.exists():
            _check(folder, comparison)
        else:
            write_json(folder / STORE, {"format": FORMAT})
            write_text(path, comparison.model_dump_json(indent=2) + "\n")
    return store


def _check(folder: Path, comparison: config.Comparison) -> None:
    """Raises ValueError unless the folder holds this comparison, in this format."""
    held = read_json(folder / "config.json")
    number = read_json(folder / STORE, absent={}).get("format") if "axes" in held else FORMAT
    if number != FORMAT:
        found = f"the store of another version: format {number}" if number else f"no {STORE}: an earlier version wrote it"
        raise ValueError(f"{folder} has {found}; wanted format {FORMAT}, or a new folder")
    if held != json.loads(comparison.model_dump_json()):  # compared as JSON, which has no tuples
        raise ValueError(
            f"{folder} holds another comparison or a run; wanted a new folder, or the same settings as its config.json"
        )


def _new_run(
    comparison: config.Comparison,
    number: int,
    count: int,
    label: str,
    point: dict[str, Any],
    experiment: config.Experiment,
    stage: int = 1,
) -> Run:
    axes = varied_axes(comparison) if stage == 1 else [*(axis for axis in varied_axes(comparison) if axis != SEED), SEED]
    parts = (comparison.written_layers(point) if axis == LAYERS else [value_label(comparison, point, axis)] for axis in axes)
    slug = "-".join(filter(None, (re.sub(r"[^\w=.,+]+", "_", ",".join(each)).strip("_") for each in parts))) or "only"
    return Run(
        name=shortened(f"{number:0{len(str(count - 1))}d}-{slug}", NAME_BYTES),
        label=label,
        point=point,
        rate=experiment.optimizer.learning_rate,
        seed=experiment.training.seed,
        summary={},
        stage=stage,
    )


def _reason(error: Exception, place: Path) -> tuple[str, str]:
    """The reason of a failure in one line, and what else failure.txt says of it."""
    from seqzoo import training

    expected = isinstance(error, ValueError | OSError | training.Diverged | training.CheckpointError)
    reason = " ".join(str(error).split())[:500]
    problem = reason if expected and reason else f"{type(error).__name__}: {reason}; see {place / FAILURE}"
    damaged = isinstance(error, training.CheckpointError) or (isinstance(error, DamagedFile) and str(place) in str(error))
    more = "" if expected else "\n" + "".join(traceback.format_exception(error))
    traceback.clear_frames(error.__traceback__)  # arrays in local variables take memory that the next experiment may need
    gc.collect()
    return problem, f"{SET_ASIDE}\n" if damaged else more


def _is_damaged(place: Path) -> bool:
    """Tells if a run cannot be continued from what its folder holds. Reads its JSON, its metrics and its checkpoints."""
    from seqzoo.training.run import checkpoint, metrics, run_dir

    if not place.is_dir():
        return True
    if not any(place.iterdir()):
        return False
    try:
        config.load_json(place / "config.json")
        for path in place.glob("*.json"):
            read_json(path)
        metrics.read(place / metrics.METRICS)
        if (summary := metrics.read_summary(place)).get("finished"):
            check_summary(summary, place / metrics.SUMMARY)
        else:
            run_dir.check_saved(place)
        if (place / FAILURE).exists() and SET_ASIDE in (place / FAILURE).read_text(encoding="utf-8", errors="replace"):
            return True
    except (ValueError, OSError):
        return True
    folder = place / "checkpoints"
    steps = checkpoint.Checkpoints(folder).steps()
    return bool(steps) and all(checkpoint.damage(folder / str(step)) for step in steps)


def check_summary(summary: dict[str, Any], path: Path) -> None:
    """Raises DamagedFile unless a finished run's summary has what tables and figures are made of."""
    number, absent = (int, float), type(None)
    require(summary, str(path), state_bytes=int, tokens_per_second=(*number, absent))
    for part in ("final", "best", "test"):
        require(summary[part], f"{path}, {part}", **dict.fromkeys(summary[part], dict))
        for name, result in summary[part].items():
            require(result, f"{path}, {part} {name}", accuracy=number, loss=number, chance=(*number, absent), settings=dict)
