"""The metrics of a run: metrics.jsonl, one JSON object per line, copies of it for other tools, and summary.json made from it.

metrics.jsonl is the record. A resumed run drops the lines of steps that it will repeat; its summary covers all remaining lines.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from seqzoo import config
from seqzoo.data.atomic_io import sync, write_errors, write_json, write_text
from seqzoo.data.json_files import open_regular, read_json, read_json_lines, require
from seqzoo.mixers import state_bytes
from seqzoo.model import params
from seqzoo.tasks.base import EvalSet
from seqzoo.training.objective import ACCURACY, Evaluation, Objective, objective_of
from seqzoo.training.plateau import Gains
from seqzoo.training.run import distributed, metric_writers
from seqzoo.training.run.metric_writers import Line
from seqzoo.training.state import TrainSetup

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
Results = dict[str, dict[str, Any]]  # {eval set: its numbers}
Stamp = dict[str, Any]  # of a file that grows: its "bytes", and the "sha256" of them
LABELS = ("step", "kind", "eval_set", "tokens", "seconds")  # the fields of a line that are not results


def differs(path: Path, stamp: Stamp) -> bool:
    """Tells if the file no longer begins with the lines that it had when the stamp was taken; doubled ones do not matter."""
    begins = lambda data: hashlib.sha256(data[: stamp["bytes"]]).hexdigest() == stamp["sha256"]
    with open_regular(path) as file:
        return not begins(file.read(max(0, stamp["bytes"]))) and not begins(_text(read(path)).encode())


def _text(lines: Iterable[Line]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; none if there is no such file. An incomplete last line, left by a crash, is skipped.

    A step's line is there once, and that of an evaluation set at a step: of doubled ones, which two processes without a lock leave,
    the first counts.
    Raises:
      DamagedFile: a line is not one that a run writes.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Line], int]:
    """The lines, and the number of doubled ones besides them."""
    lines, found = {}, read_json_lines(path)
    for number, line in enumerate(found, 1):
        require(line, f"line {number} of {path}", step=int, kind=str)
        if line["kind"] == "eval":
            require(line, f"line {number} of {path}", eval_set=str)
        lines.setdefault((line["step"], line["kind"], line.get("eval_set")), line)
    return list(lines.values()), len(found) - len(lines)


class MetricsFile:
    """metrics.jsonl of a run at `step`: lines of later steps, which a resumed run will write again, are dropped.

    So is an evaluation that lacks one of `eval_sets`: a full disk may have taken only its first lines. And so are doubled lines.

    Attributes:
      opened: the lines that were kept.
      doubled: the number of doubled lines.
      evaluated: the step of the last evaluation, or -1.
      seconds: run time at the last line.
    """

    def __init__(self, path: Path, step: int = 0, eval_sets: Iterable[str] = ()):
        self.path = Path(path)
        lines, self.doubled = _read(self.path)
        lines = [line for line in lines if line["step"] <= step]
        seen: dict[int, set[str | None]] = {}
        for line in lines:
            if line["kind"] == "eval":
                seen.setdefault(line["step"], set()).add(line.get("eval_set"))
        whole = {at for at, names in seen.items() if names >= set(eval_sets)}
        lines = [line for line in lines if line["kind"] != "eval" or line["step"] in whole]
        self.evaluated = max(whole, default=-1)
        self.seconds = max((line.get("seconds", 0.0) for line in lines), default=0.0)
        self.opened = lines
        text = _text(lines)
        self._bytes, self._digest = len(text.encode()), hashlib.sha256(text.encode())
        write_text(self.path, text)

    @property
    def stamp(self) -> Stamp:
        """Length and digest of the file as it is now: more lines may follow, but these never change."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def append(self, *lines: Line) -> None:
        """Adds lines in one write, so that a killed process leaves an evaluation with all its evaluation sets or not at all."""
        text = _text(lines)
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
        self._bytes += len(text.encode())
        self._digest.update(text.encode())


class MetricsLog:
    """metrics.jsonl of a run at `step` together with its copies: takes lines and passes them to all, until `close`.

    Args:
      folder: of the run.
      experiment: what is run; `run.log` names the copies.
      step: the last step of the run so far.
      eval_sets: names of its evaluation sets.
    """

    def __init__(self, folder: Path, experiment: config.Experiment, step: int = 0, eval_sets: Iterable[str] = ()):
        self.file = MetricsFile(Path(folder) / METRICS, step, eval_sets)
        opened = self.file.opened
        self._writers = [metric_writers.WRITERS[name](Path(folder), experiment, opened) for name in experiment.run.log]

    def append(self, *lines: Line) -> None:
        """Adds lines everywhere, to metrics.jsonl first."""
        self.file.append(*lines)
        for writer in self._writers:
            writer.append(*lines)

    def close(self) -> None:
        """Ends all copies, also if one of them fails to end."""
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.callback(writer.close)


class BestEvaluation:
    """The best of the evaluations added so far, the first of equal ones, by its mean over evaluation sets. O(1) each."""

    def __init__(self):
        self._objective: Objective | None = None
        self._best: dict[Objective, tuple[float, int]] = {}

    def add(self, step: int, evaluation: Evaluation) -> None:
        """Adds the evaluation of a step."""
        objective = objective_of([evaluation])
        self._objective = objective if self._objective in (None, objective) else ACCURACY  # which all evaluations have
        for each in {objective, ACCURACY}:
            value = each.sort_key(each.mean(evaluation))
            if each not in self._best or value > self._best[each][0]:
                self._best[each] = value, step

    @property
    def step(self) -> int | None:
        """The step of the best; None before the first."""
        return None if self._objective is None else self._best[self._objective][1]


class Metrics:
    """The metrics and the summary of a run at `step`. All processes make the same calls; process 0 writes.

    The file is read when this is opened, and for the summary; an evaluation reads nothing.
    """

    def __init__(self, setup: TrainSetup, folder: Path, step: int):
        self.setup = setup
        self.folder = folder
        self.eval_sets = {part.name: part for part in setup.task.eval_sets()}
        self._best = BestEvaluation()
        self._accuracy = math.nan  # of the last evaluation
        self._gains = Gains(setup.experiment.training.min_gain, setup.experiment.training.patience)
        # The step of the last evaluation, or -1; how long the run had taken when its last line was written; doubled lines.
        self.evaluated, self.seconds, self.doubled = distributed.from_main_process(lambda: self._open(step))

    def train(self, step: int, **numbers: Any) -> None:
        """Appends the line of a training step. A number that is not finite, as of a skipped step, becomes null."""
        self._append({"step": step, "kind": "train", **_finite(numbers)})

    def evaluation(self, step: int, results: Results, **progress: float) -> None:
        """Appends a line for each evaluation set."""
        lines = ({"step": step, "kind": "eval", "eval_set": name, **numbers} for name, numbers in results.items())
        self._append(*(line | progress for line in lines))
        self._count(step, results)
        self.evaluated = step

    def sync(self) -> Stamp | None:
        """Makes the lines so far durable. Returns their stamp, in process 0."""
        if not distributed.is_main_process():
            return None
        path = self.folder / METRICS
        with write_errors(path):
            sync(path)
        return self._log.file.stamp

    def ended(self, step: int) -> str | None:
        """Reason for which the run ends at `step`: "solved", "plateau" or "budget", of several the first; None if it does not.

        Decided by the evaluations so far, also those that an earlier process made; before that of this step, None.
        """
        return distributed.from_main_process(lambda: self._ended(step)) if self.evaluated == step else None

    def best(self) -> int | None:
        """The step of the best evaluation so far, the first of equal ones; None before the first."""
        return distributed.from_main_process(lambda: self._best.step)

    def summarise(self, test: Results | None, step: int, tokens_per_second: float | None, **more: Any) -> dict[str, Any]:
        """Writes summary.json from metrics.jsonl, so that the summary of a resumed run covers all of its steps.

        `test` has the numbers of the test sets, which are in no other file; None if the run has not finished.
        """
        return distributed.from_main_process(lambda: self._summarise(test, step, tokens_per_second, more))

    def close(self) -> None:
        """No more lines come."""
        if distributed.is_main_process():
            self._log.close()

    def _open(self, step: int) -> tuple[int, float, int]:
        self._log = MetricsLog(self.folder, self.setup.experiment, step, self.eval_sets)
        file = self._log.file
        for at, evaluation in self._evaluations(file.opened).items():
            self._count(at, evaluation)
        file.opened = []  # a long run's lines take memory
        return file.evaluated, file.seconds, file.doubled

    def _count(self, step: int, evaluation: Evaluation) -> None:
        if not evaluation:  # the task has no evaluation sets
            return
        self._best.add(step, evaluation)
        self._accuracy = ACCURACY.mean(evaluation)
        self._gains.add(self._accuracy, fmean(numbers["loss"] for numbers in evaluation.values()))

    def _ended(self, step: int) -> str | None:
        settings = self.setup.experiment.training
        if settings.stop_above is not None and self._accuracy > settings.stop_above:
            return "solved"
        if settings.patience is not None and self._gains.on_plateau:
            return "plateau"
        return "budget" if step == settings.steps else None

    def _append(self, *lines: Line) -> None:
        if distributed.is_main_process():
            self._log.append(*lines)

    def _evaluations(self, lines: list[Line]) -> dict[int, Results]:
        """{step: {eval set: its numbers, chance and settings}}."""
        found: dict[int, Results] = {}
        for line in lines:
            if line["kind"] == "eval" and (part := self.eval_sets.get(line["eval_set"])):
                where = f"the evaluation of {part.name} at step {line['step']} in {self.folder / METRICS}"
                require(line, where, accuracy=(int, float), loss=(int, float))
                numbers = {name: value for name, value in line.items() if name not in LABELS}
                found.setdefault(line["step"], {})[part.name] = described(part, numbers)
        return found

    def _summarise(self, test: Results | None, step: int, tokens_per_second: float | None, more: dict[str, Any]) -> dict[str, Any]:
        setup, lines = self.setup, read(self.folder / METRICS)
        by_step, best, ended = self._evaluations(lines), self._best.step, self._ended(step)
        rates = [line.get("tokens_per_second") for line in lines if line["kind"] == "train"]
        rates = sorted(rate for rate in rates if rate is not None)
        summary = {
            "finished": test is not None,
            **({} if test is None else {"ended": ended, "still_learning": ended == "budget" and self._gains.still_learning}),
            "step": step,
            "parameters": params.count(setup.parameters),
            "state_bytes": state_bytes(setup.model(setup.abstract["params"]), setup.task.max_length),
            "tokens_per_second": tokens_per_second or (rates[len(rates) // 2] if rates else None),
            "final": by_step[max(by_step)] if by_step else {},
            "best": {} if best is None else by_step[best],
            "test": {part.name: described(part, test[part.name]) for part in setup.task.test_sets()} if test else {},
            **more,
        }
        write_json(self.folder / SUMMARY, summary)
        return summary


def described(part: EvalSet, numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation set with its chance level and settings."""
    return {**numbers, "chance": part.chance, "settings": part.settings}


def finished_summary(folder: Path, steps: int) -> dict[str, Any] | None:
    """The summary of a run that has ended, or None; one that ended by its budget, which is below `steps` now, is to continue."""
    summary = read_summary(folder)
    return summary if summary.get("finished") and (summary["ended"] != "budget" or summary["step"] >= steps) else None


def read_summary(folder: Path) -> dict[str, Any]:
    """The contents of a run's summary.json; {} before the first. Raises DamagedFile."""
    path = folder / SUMMARY
    summary = read_json(path, absent={})
    if summary.get("finished"):
        require(summary, str(path), ended=str, still_learning=bool, step=int, parameters=int, final=dict, best=dict, test=dict)
    return summary


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inside) for name, inside in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
