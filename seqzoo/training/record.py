"""What a run leaves to be read: metrics.jsonl as it goes, copies of it where they are wanted, and summary.json of it."""

import json
import math
from pathlib import Path
from typing import Any

from seqzoo.data.atomic_io import write_json
from seqzoo.mixers import state_bytes
from seqzoo.model import params
from seqzoo.training import distributed, sinks
from seqzoo.training import metrics as files
from seqzoo.training.objective import ACCURACY, objective_of
from seqzoo.training.state import Plan

STAMPS = ("step", "kind", "slice", "tokens", "seconds")  # what a line is of, besides its numbers
METRICS, SUMMARY = "metrics.jsonl", "summary.json"


class Record:
    """The record of a run that stands at `step`. All processes make the same calls; process 0 writes."""

    def __init__(self, plan: Plan, folder: Path, step: int):
        self.plan = plan
        self.folder = folder
        self.slices = {part.name: part for part in plan.task.slices()}
        # The step of the last evaluation, or -1; and how long the run had taken when its last line was written.
        self.evaluated, self.seconds = distributed.from_first(lambda: self._open(step))

    def train(self, step: int, **numbers: Any) -> None:
        """A line of a training step. What is not finite, as of a step that was left out, is null."""
        self._append({"step": step, "kind": "train", **_finite(numbers)})

    def evaluation(self, step: int, results: dict[str, dict[str, Any]], **stamp: float) -> None:
        """A line for each slice."""
        lines = ({"step": step, "kind": "eval", "slice": name, **numbers} for name, numbers in results.items())
        self._append(*(line | stamp for line in lines))
        self.evaluated = step

    def accuracy(self, step: int) -> float:
        """The mean over slices at that step's evaluation, as recorded: a resumed run did not see it."""
        return distributed.from_first(lambda: ACCURACY.mean(self._evaluations()[step]))

    def best(self) -> int | None:
        """The step of the best evaluation so far, the first of several alike; None before the first."""

        return distributed.from_first(lambda: _best(self._evaluations()))

    def summarise(self, finished: bool, step: int, tokens_per_second: float | None, **more: Any) -> dict[str, Any]:
        """Writes summary.json from what metrics.jsonl says, so that a resumed run sums up all of itself."""
        return distributed.from_first(lambda: self._summarise(finished, step, tokens_per_second, more))

    def close(self) -> None:
        """No more lines come."""
        if distributed.first():
            self._log.close()

    def _open(self, step: int) -> tuple[int, float]:
        self._log = sinks.Log(self.folder, self.plan.experiment, step, self.slices)
        return self._log.evaluated, self._log.seconds

    def _append(self, *lines: dict[str, Any]) -> None:
        if distributed.first():
            self._log.append(*lines)

    def _evaluations(self) -> dict[int, dict[str, dict[str, Any]]]:
        """{step: {slice: its numbers, chance and settings}}."""
        found: dict[int, dict[str, Any]] = {}
        for line in files.read(self.folder / METRICS):
            if line["kind"] == "eval" and (part := self.slices.get(line["slice"])):
                numbers = {name: value for name, value in line.items() if name not in STAMPS}
                known = {"chance": part.chance, "settings": part.settings}
                found.setdefault(line["step"], {})[part.name] = numbers | known
        return found

    def _summarise(self, finished, step, tokens_per_second, more):
        plan, by_step = self.plan, self._evaluations()
        rates = [line.get("tokens_per_second") for line in files.read(self.folder / METRICS) if line["kind"] == "train"]
        rates = sorted(rate for rate in rates if rate is not None)
        summary = {
            "finished": finished,
            "early": finished and step < plan.experiment.training.steps,
            "step": step,
            "parameters": params.count(plan.parameters),
            "state_bytes": state_bytes(plan.model(plan.abstract["params"]), plan.task.max_length),
            "tokens_per_second": tokens_per_second or (rates[len(rates) // 2] if rates else None),
            "final": by_step[max(by_step)] if by_step else {},
            "best": by_step[_best(by_step)] if by_step else {},
            **more,
        }
        write_json(self.folder / SUMMARY, summary)
        return summary


def _best(by_step: dict[int, dict[str, dict[str, Any]]]) -> int | None:
    """The step of the best evaluation, by its mean over slices; the first of several alike."""
    objective = objective_of(by_step.values())
    return max(by_step, key=lambda step: objective.sort_key(objective.mean(by_step[step])), default=None)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inside) for name, inside in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished(folder: Path, steps: int) -> dict[str, Any] | None:
    """The summary of a run that has ended, or None; one that ended before `steps`, and not early, is to go on."""
    path = folder / SUMMARY
    summary = json.loads(path.read_text()) if path.exists() else {}
    return summary if summary.get("finished") and (summary["early"] or summary["step"] >= steps) else None
