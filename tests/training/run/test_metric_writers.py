"""Copies of metrics.jsonl: each line once, also after a resume; a missing package is reported before anything runs."""

import contextlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from helpers.tiny import tiny
from seqzoo.training.run import metric_writers, metrics


def train(step, loss=1.0):
    return {"step": step, "kind": "train", "loss": loss, "tokens_per_second": None, "seconds": 2.0 * step}


def evaluation(step, name="a"):
    line = {"step": step, "kind": "eval", "eval_set": name, "accuracy": step / 16, "position_loss": {"from": [0], "loss": [1.0]}}
    return line | {"seconds": 2.0 * step}


@contextlib.contextmanager
def log(folder, name, step=0):
    """The log of a run that stands at a step."""
    opened = metrics.MetricsLog(folder, tiny(run__log=(name,), run__name="mine"), step, ["a", "b"])
    try:
        yield opened
    finally:
        opened.close()


def curves(lines):
    """{tag: {step: value}} as a reader of metrics.jsonl would draw them."""
    found = {}
    for line in lines:
        for tag, value in metric_writers.scalars(line).items():
            found.setdefault(tag, {})[line["step"]] = value
    return found


def test_scalars_are_named_by_split_evaluation_set_and_metric():
    assert metric_writers.scalars(train(8)) == {"train/loss": 1.0, "train/seconds": 16.0}
    assert metric_writers.scalars(evaluation(8)) == {"eval/a/accuracy": 0.5, "eval/a/seconds": 16.0}


def events(folder):
    """{tag: [(step, value, wall time)]} of TensorBoard's files, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(each.step, each.value, each.wall_time) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_reads_what_metrics_jsonl_holds(tmp_path):
    with log(tmp_path, "tensorboard") as opened:
        opened.append(train(1), train(2))
        opened.append(evaluation(2, "a"), evaluation(2, "b"))
        found = events(tmp_path)  # of a run under way
    assert {tag: {step: value for step, value, _ in each} for tag, each in found.items()} == curves(
        metrics.read(tmp_path / "metrics.jsonl")
    )
    (_, _, first), (_, _, second) = found["train/loss"]
    assert second - first == pytest.approx(2.0)


def test_after_a_resume_tensorboard_has_every_step_once(tmp_path):
    with log(tmp_path, "tensorboard") as opened:
        opened.append(*map(train, range(1, 9)))
        opened.append(evaluation(8, "a"), evaluation(8, "b"))
    with log(tmp_path, "tensorboard", step=5) as opened:
        assert opened.file.seconds == 10.0 and opened.file.evaluated == -1
        opened.append(train(6, loss=9.0), train(7))
    found = events(tmp_path)
    assert [step for step, *_ in found["train/loss"]] == [1, 2, 3, 4, 5, 6, 7] and "eval/a/accuracy" not in found
    assert {step: value for step, value, _ in found["train/loss"]}[6] == 9.0
    walls = [wall for *_, wall in found["train/loss"]]
    assert walls == sorted(walls) and walls[-1] - walls[0] == pytest.approx(12.0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_tensorboard_needs_neither_tensorflow_nor_pytorch():
    code = (
        "import sys, pathlib, tempfile; from seqzoo.config import *; from seqzoo.training.run import metrics\n"
        "metrics.MetricsLog(pathlib.Path(tempfile.mkdtemp()), Experiment(run=Run(log=('tensorboard',)))).close()\n"
        "sys.exit(bool({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], timeout=300).returncode == 0


@pytest.fixture
def service(monkeypatch):
    """A stand-in for wandb: what its service was given, by run."""
    service = types.SimpleNamespace(runs={}, inits=[], finished=0, axes=[])

    class Run:
        def __init__(self, rows):
            self.rows = rows

        def define_metric(self, name, step_metric):
            service.axes.append((name, step_metric))

        def log(self, row):
            self.rows.append(row)

        def finish(self):
            service.finished += 1

    def init(**settings):
        service.inits.append(settings)
        return Run(service.runs.setdefault(settings["id"], []))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return service


def test_wandb_gets_one_run_with_the_settings_and_steps_of_our_own(tmp_path, service):
    with log(tmp_path, "wandb") as opened:
        opened.append(train(1))
        opened.append(evaluation(1, "a"), evaluation(1, "b"))
    ((identity, rows),) = service.runs.items()
    (settings,) = service.inits
    assert settings["resume"] == "allow" and settings["name"] == tmp_path.name and settings["dir"] == str(tmp_path)
    assert settings["config"]["model"]["d_model"] == 16 and "mode" not in settings and "project" not in settings
    assert [row.pop("step") for row in rows] == [1, 1, 1]
    assert rows == [metric_writers.scalars(line) for line in metrics.read(tmp_path / "metrics.jsonl")]
    assert service.axes == [("train/*", "step"), ("eval/*", "step")] and service.finished == 1 and len(identity) == 12


def test_after_any_number_of_resumes_wandb_has_every_line_once(tmp_path, service):
    """The second resume is from the same checkpoint, and metrics.jsonl then no longer knows how far the first run came."""
    for begin, end in ((0, 8), (5, 6), (5, 12)):
        with log(tmp_path, "wandb", step=begin) as opened:
            for step in range(begin + 1, end + 1):
                opened.append(train(step))
                if step % 4 == 0:
                    opened.append(evaluation(step, "a"), evaluation(step, "b"))
    (rows,) = service.runs.values()
    names = lambda tag: [row["step"] for row in rows if tag in row]
    assert names("train/loss") == list(range(1, 13)) and names("eval/a/accuracy") == names("eval/b/accuracy") == [4, 8, 12]


def test_an_evaluation_that_is_made_after_a_resume_reaches_wandb(tmp_path, service):
    with log(tmp_path, "wandb") as opened:
        opened.append(train(4))
    with log(tmp_path, "wandb", step=4) as opened:
        opened.append(evaluation(4, "a"), evaluation(4, "b"))
    (rows,) = service.runs.values()
    assert [row["step"] for row in rows] == [4, 4, 4] and "eval/a/accuracy" in rows[1]


def test_a_metric_writer_that_is_added_later_gets_all_earlier_lines(tmp_path, service):
    metrics.MetricsFile(tmp_path / "metrics.jsonl").append(train(1), train(2))
    with log(tmp_path, "wandb", step=2), log(tmp_path, "tensorboard", step=2):
        (rows,) = service.runs.values()
        assert [row["step"] for row in rows] == [1, 2] == [step for step, *_ in events(tmp_path)["train/loss"]]


def test_all_copies_are_ended_if_one_fails_to_end(tmp_path, monkeypatch):
    ended = []

    class Failing:
        def __init__(self, *_):
            pass

        def close(self):
            ended.append(self)
            raise RuntimeError("no network")

    monkeypatch.setattr(metric_writers, "WRITERS", {"tensorboard": Failing, "wandb": Failing})
    opened = metrics.MetricsLog(tmp_path, tiny(run__log=("tensorboard", "wandb")))
    with pytest.raises(RuntimeError, match="no network"):
        opened.close()
    assert len(ended) == 2


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "log"), ("wandb", "wandb")])
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(ValueError, match=rf'package {name} is not installed; wanted pip install "seqzoo\[{extra}\]"'):
        metric_writers.check((name,))
    metric_writers.check(())


def test_a_full_disk_is_a_write_error(tmp_path):
    from seqzoo.training import WriteError

    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot write .*tensorboard"), log(tmp_path, "tensorboard"):
        pass
