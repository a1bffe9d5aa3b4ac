"""Interrupted runs that are resumed: the numbers are those of a run that never stopped."""

import contextlib
import io
import json
import os
import re
import resource
import signal
import time

import jax
import numpy as np
import pytest
from rich.console import Console

from helpers.tiny import quiet, stopping, tiny
from seqzoo import config, training
from seqzoo.data.atomic_io import WriteError, write_text
from seqzoo.training.run import metrics

EXPERIMENT = dict(model__dropout=0.1)  # so that the dropout's keys must resume as well


class Trigger(io.StringIO):
    """A console's file that calls `act` once, when text that holds `words` is written."""

    def __init__(self, words, act):
        super().__init__()
        self.words, self.act = words, act

    def write(self, text):
        super().write(text)
        if self.act and self.words in text:
            act, self.act = self.act, None
            act()


def steps_kept(folder):
    return training.Checkpoints(folder / "checkpoints").steps()


def spoil(folder, step):
    """Truncates every file of a checkpoint."""
    for path in (folder / "checkpoints" / str(step)).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: (folder, summary, what it printed)."""
    folder, console = tmp_path_factory.mktemp("runs") / "whole", quiet()
    return folder, training.train(tiny(**EXPERIMENT), folder, console=console), console.file.getvalue()


def test_a_stopped_and_resumed_run_is_bitwise_one_that_never_stopped(whole, digest, numbers, tmp_path):
    folder, wanted, _ = whole
    experiment, console = stopping(tiny(**EXPERIMENT), 3), quiet()
    stopped = training.train(experiment, tmp_path / "run", console=console)
    assert (stopped["finished"], stopped["step"]) == (False, 3)
    assert f"saved {tmp_path / 'run'} at step 3; continue with: train.py resume" in console.file.getvalue()
    summary = training.train(experiment, tmp_path / "run", console=console)
    assert f"resuming {tmp_path / 'run'} at step 3" in console.file.getvalue()
    assert console.file.getvalue().count("continue with") == 1
    assert digest(experiment, tmp_path / "run") == digest(experiment, folder)
    assert numbers(tmp_path / "run") == numbers(folder)
    timeless = lambda found: {k: v for k, v in found.items() if k not in ("tokens_per_second", "seconds")}
    assert timeless(summary) == timeless(wanted)


def test_a_checkpoint_that_does_not_load_is_reported_and_the_previous_one_is_used(whole, digest, numbers, tmp_path):
    folder, _, _ = whole
    experiment, console = tiny(**EXPERIMENT), quiet()
    training.train(stopping(experiment, 4), tmp_path / "run", console=console)
    spoil(tmp_path / "run", 4)
    training.train(experiment, tmp_path / "run", console=console)
    printed = console.file.getvalue()
    assert "4 does not load" in printed and "going back to step 2" in printed and "unreadable-4" in printed
    assert digest(experiment, tmp_path / "run") == digest(experiment, folder)
    assert numbers(tmp_path / "run") == numbers(folder)


def test_when_no_checkpoint_loads_the_run_stops_instead_of_starting_from_scratch(tmp_path):
    training.train(stopping(tiny(**EXPERIMENT), 2), tmp_path / "run", console=quiet())
    spoil(tmp_path / "run", 2)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(training.CheckpointError, match=r"no checkpoint in .* loads"):
        training.train(tiny(**EXPERIMENT), tmp_path / "run", console=quiet())
    assert steps_kept(tmp_path / "run") == [2]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_run_stopped_by_a_signal_reports_the_save_and_resumes_bitwise(number, whole, digest, numbers, tmp_path):
    folder, _, _ = whole
    experiment = tiny(**EXPERIMENT)
    trigger = Trigger("step 3/6  loss", lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(training.Interrupted) as caught:
        training.train(experiment, tmp_path / "run", console=Console(file=trigger, width=200))
    assert caught.value.exit_code == 128 + number and signal.getsignal(number) == before
    assert f"{number.name}: saving" in trigger.getvalue() and f"at step {caught.value.step}" in trigger.getvalue()
    assert caught.value.step < 6 and steps_kept(tmp_path / "run")[-1] == caught.value.step
    training.train(experiment, tmp_path / "run", console=quiet())
    assert digest(experiment, tmp_path / "run") == digest(experiment, folder)
    assert numbers(tmp_path / "run") == numbers(folder)


def test_a_run_that_ends_before_its_test_sets_are_evaluated_is_not_finished_and_evaluates_them_when_resumed(
    whole, digest, numbers, tmp_path
):
    folder, wanted, _ = whole
    experiment, run = tiny(**EXPERIMENT), tmp_path / "run"
    trigger = Trigger("step 6/6  accuracy", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(training.Interrupted):
        training.train(experiment, run, console=Console(file=trigger, width=200))
    stopped = json.loads((run / "summary.json").read_text())
    assert (stopped["finished"], stopped["step"], stopped["test"]) == (False, 6, {}) and "test acc" not in trigger.getvalue()
    (run / "summary.json").unlink()  # as a killed process leaves it
    summary = training.train(experiment, run, console=quiet())
    assert digest(experiment, run) == digest(experiment, folder) and numbers(run) == numbers(folder)
    assert summary["finished"] and summary["test"] == wanted["test"]


def full_disk(folder, room):
    """No file of this process may grow beyond `room` bytes: undo() ends it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def file_in_place(path):
    """A file lies where a folder should."""
    aside = path.rename(path.with_name("aside"))
    path.write_text("")
    return lambda: (path.unlink(), aside.rename(path))


def folder_in_place(path):
    """A folder lies where a file should."""
    path.mkdir()
    return path.rmdir


def gone(folder):
    """The run's folder is no longer where it was."""
    aside = folder.rename(folder.with_name("aside"))
    return lambda: aside.rename(folder)


OBSTACLES = {
    "full disk, checkpoint": (lambda folder: full_disk(folder, 3000), "checkpoints/4: .*File too large"),
    "full disk, metrics": (
        lambda folder: full_disk(folder, (folder / "metrics.jsonl").stat().st_size + 20),
        "metrics.jsonl: File too large",
    ),
    "no folder for checkpoints": (lambda folder: file_in_place(folder / "checkpoints"), "checkpoints is not a folder any more"),
    "no file for the summary": (lambda folder: folder_in_place(folder / "summary.json"), "summary.json: Is a directory"),
    "run folder gone": (gone, "metrics.jsonl: No such file or directory"),
}


FIRST = ("full disk, checkpoint", "full disk, metrics", "run folder gone")


@pytest.mark.parametrize("obstacle", [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in OBSTACLES])
def test_a_write_that_fails_stops_the_run_with_one_error_and_loses_the_last_interval_only(
    obstacle, whole, digest, numbers, tmp_path
):
    put, says = OBSTACLES[obstacle]
    folder, experiment, undo = tmp_path / "run", tiny(**EXPERIMENT), contextlib.ExitStack()

    def obstruct():
        while not (folder / "checkpoints" / "2").exists():  # it is written in the background
            time.sleep(0.01)
        undo.callback(put(folder))

    trigger = Trigger("step 3/6  accuracy", obstruct)
    with undo, pytest.raises(training.WriteError) as caught:
        training.train(experiment, folder, console=Console(file=trigger, width=200))
    assert trigger.act is None
    good = 6 if "summary" in obstacle else 2
    message = str(caught.value)
    assert re.search(says, message) and f"the last good checkpoint is {folder / 'checkpoints' / str(good)};" in message, message
    assert message.endswith(f"continue with: train.py resume {folder}") and message.count("cannot write") <= 2
    assert good in steps_kept(folder) and not list(folder.glob("*.tmp"))
    training.train(experiment, folder, console=quiet())
    assert digest(experiment, folder) == digest(experiment, whole[0])
    assert numbers(folder) == numbers(whole[0])


def test_an_interrupted_evaluation_is_repeated(tmp_path):
    """A full disk may take the first of its lines and not the last."""
    lines = [
        {"step": 3, "kind": "train"},
        {"step": 3, "kind": "eval", "eval_set": "a", "accuracy": 0.5},
        {"step": 3, "kind": "eval", "eval_set": "b", "accuracy": 0.5},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"step": 3, "kind": "ev')
    again = metrics.MetricsFile(path, 3, ["a", "b"])
    assert again.evaluated == -1 and metrics.read(path) == lines[:1]
    again.append(*lines[1:])
    assert metrics.MetricsFile(path, 3, ["a", "b"]).evaluated == 3 and metrics.read(path) == lines


def test_a_file_that_cannot_be_written_keeps_its_old_text(tmp_path):
    path = tmp_path / "summary.json"
    write_text(path, "old")
    undo = full_disk(tmp_path, 100)
    try:
        with pytest.raises(WriteError, match=r"cannot write .*summary.json: File too large"):
            write_text(path, "new" * 100)
    finally:
        undo()
    assert path.read_text() == "old" and [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_temporary_files_of_a_killed_process_are_removed(whole):
    folder, _, _ = whole
    (folder / "summary.json.4711.tmp").write_text("{")
    training.train(tiny(**EXPERIMENT), folder, console=quiet())
    assert not list(folder.glob("*.tmp"))


def leaves(experiment, folder):
    state = training.Checkpoints(folder / "checkpoints").restore(training.prepare(experiment).abstract, print)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state["params"], state["opt_state"]))]


@pytest.mark.slow
def test_a_run_resumes_on_eight_four_and_one_devices_sharded_over_other_axes(tmp_path, numbers):
    """Elastic: only the order of sums differs, so numbers agree to rounding."""
    experiment = tiny(**EXPERIMENT, model__d_model=32, mesh__fsdp=1)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    training.train(experiment, whole, console=quiet())
    meshes = [config.Mesh(replica=2, fsdp=4), config.Mesh(fsdp=1, seq=2, tensor=2), config.Mesh(fsdp=1)]
    for mesh, step in zip(meshes, (2, 4, 6), strict=True):
        summary = training.train(stopping(experiment, 2), moved, console=quiet(), mesh=mesh)
        assert summary["step"] == step
    assert config.load_json(moved / "config.json") == stopping(experiment, 2)
    environment = json.loads((moved / "environment.json").read_text())
    assert [each["mesh"]["tensor"] for each in environment["resumed"]] == [2, 1]
    for one, other in zip(numbers(whole), numbers(moved), strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"kind", "eval_set"}:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-6, err_msg=f"{key} of {one}")
    for one, other in zip(leaves(experiment, whole), leaves(experiment, moved), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
