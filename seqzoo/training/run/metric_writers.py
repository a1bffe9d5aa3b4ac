"""Copies of metrics.jsonl for other tools: TensorBoard and Weights & Biases, if `run.log` names them.

metrics.jsonl is the record. A resumed run drops the lines of steps that it will repeat. TensorBoard's file is then written again
from the record. Weights & Biases cannot delete lines, so a repeated step is not sent again; its numbers would be the same.
"""

import importlib.util
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from seqzoo import config
from seqzoo.data.atomic_io import write_errors, write_json
from seqzoo.data.json_files import read_json, require

EXTRAS = {"tensorboard": "log", "wandb": "wandb"}  # extra of seqzoo that installs each package

Line = dict[str, Any]


class MetricWriter(Protocol):
    """A copy of metrics.jsonl somewhere else, made from a run's folder, its experiment and the lines that are there already."""

    def append(self, *lines: Line) -> None:
        """Adds lines."""

    def close(self) -> None:
        """No more lines come."""


def check(names: Sequence[str]) -> None:
    """Raises ValueError if the package that a copy needs is not installed; names the extra that installs it. Imports nothing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"run.log has {name!r}, but the package {name} is not installed; "
                f'wanted pip install "seqzoo[{EXTRAS[name]}]", or run.log without it'
            )


def flatten(numbers: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"gradient_norms": {"layers": {"0": {"mixer": 1.0}}}} has "gradient_norms/layers/0/mixer"."""
    found: dict[str, Any] = {}
    for name, value in numbers.items():
        found |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line, by names like "train/loss" and "eval/pairs=8/accuracy"; other values have no curve."""
    prefix = f"eval/{line['eval_set']}" if line["kind"] == "eval" else line["kind"]
    numbers = flatten(line).items()
    return {f"{prefix}/{key}": value for key, value in numbers if key != "step" and isinstance(value, int | float)}


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUNS`.

    Written by TensorBoard's own record writer, without TensorFlow or PyTorch. The wall time of a value is that of the run without
    the pauses between its processes: TensorBoard's axis "relative" shows training time.
    """

    def __init__(self, folder: Path, experiment: config.Experiment, held: Sequence[Line]):
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes its classes at import)
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self._begin = time.time() - max((line.get("seconds", 0.0) for line in held), default=0.0)
        self.folder = folder / "tensorboard"
        with write_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
            self.path = self.folder / f"events.out.tfevents.{time.time_ns()}"
            self._writer = RecordWriter(self.path.open("wb"))
        self._write(Event(wall_time=self._begin, file_version="brain.Event:2"))
        self.append(*held)

    def append(self, *lines: Line) -> None:
        """One event per line, on disk when this returns."""
        value = self._summary.Value
        self._write(
            *(
                self._event(
                    step=line["step"],
                    wall_time=self._begin + line.get("seconds", 0.0),
                    summary=self._summary(value=[value(tag=tag, simple_value=number) for tag, number in scalars(line).items()]),
                )
                for line in lines
            )
        )

    def close(self) -> None:
        """Closes the file."""
        with write_errors(self.path):
            self._writer.close()

    def _write(self, *events) -> None:
        with write_errors(self.path):
            for event in events:
                self._writer.write(event.SerializeToString())
            self._writer.flush()


class Wandb:
    """One Weights & Biases run for all processes of a run, one after another.

    RUN/wandb.json keeps its id, and the last step whose lines of each kind it has: lines of steps done again after a resume are not
    sent, since its history can only grow. The step is sent as a metric, because wandb's own steps cannot go back, and an
    evaluation may come later than its step's training line. Project, account and mode (WANDB_MODE=offline) are those of wandb's own
    settings and environment variables.
    """

    def __init__(self, folder: Path, experiment: config.Experiment, held: Sequence[Line]):
        import wandb  # pyright: ignore[reportMissingImports]  (an extra)

        self.path = folder / "wandb.json"
        self._given = read_json(self.path, absent={"id": uuid.uuid4().hex[:12]})
        require(self._given, str(self.path), id=str)
        settings = experiment.model_dump(mode="json")
        self._run = wandb.init(id=self._given["id"], resume="allow", name=folder.name, dir=str(folder), config=settings)
        for names in ("train/*", "eval/*"):
            self._run.define_metric(names, step_metric="step")
        self.append(*held)

    def append(self, *lines: Line) -> None:
        """One row of history per line that is new to it."""
        new = [line for line in lines if line["step"] > self._given.get(line["kind"], -1)]
        for line in new:
            self._run.log({"step": line["step"], **scalars(line)})
        self._given |= {line["kind"]: line["step"] for line in new}
        write_json(self.path, self._given)

    def close(self) -> None:
        """Ends the upload."""
        self._run.finish()


WRITERS: dict[str, Callable[[Path, config.Experiment, Sequence[Line]], MetricWriter]] = {"tensorboard": TensorBoard, "wandb": Wandb}
