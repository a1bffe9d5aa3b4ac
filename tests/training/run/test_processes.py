"""Runs in separate processes: killed at random moments; two processes that train together and receive a signal."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import xla
from helpers.checkpoint_folders import MAMBA, mamba_tensors, write
from helpers.tiny import quiet, tiny
from seqzoo import config, convert, training
from seqzoo.training.run import metrics

TRAIN = Path(__file__).parents[3] / "train.py"
PATIENCE = 600  # seconds, for what never comes; two processes on two busy cores may take minutes
# What Gloo's threads print is one message in pieces, any of which may stand between those of another thread, or alone on a line;
# the last piece is the line's end.
GLOO = re.compile(r"\[Gloo\]| is connected to | peer ranks|^\d*$")


@pytest.fixture
def start(tmp_path):
    """start(*words, devices=1): train.py with these words in a process of its own, in an empty folder; killed at the end."""
    started = []

    def run(*words, devices=1):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla.flags(devices),
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [sys.executable, TRAIN, *map(str, words)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    """(exit code, standard output, standard error) when the process has ended, without what Gloo prints."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, "".join(line for line in out.splitlines(True) if not GLOO.search(line)), err


def write_config(folder, experiment):
    values = {path: value for path, value in config.settings(experiment).items() if path != "mesh.rules"}
    (folder / "my.py").write_text(f"from seqzoo.config import *\nconfig = replace(Experiment(), {values!r})\n")


def wait_for(step, folder, process):
    """Returns when metrics.jsonl has a line of this step or a later one."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (lines := metrics.read(path)) or lines[-1]["step"] < step:
        if process.poll() is not None:
            raise AssertionError(f"ended before step {step}: {ended(process)}")
        if time.monotonic() > deadline:
            raise AssertionError(f"no step {step} after {PATIENCE} s")
        time.sleep(0.001)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_bitwise_as_one_that_is_not(start, digest, numbers, tmp_path):
    experiment = tiny(training__steps=240, training__checkpoint_every=3, training__eval_every=40, model__dropout=0.1)
    write_config(tmp_path, experiment)
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    code, _, err = ended(start("my.py", "--run.name", "whole"))
    assert code == 0, err
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for number in range(4):
        process = start("resume", killed) if number else start("my.py", "--run.name", "killed")
        at, after = moments.randint(55 * number + 1, 55 * number + 40), moments.uniform(0, 0.05)
        wait_for(at, killed, process)
        time.sleep(after)
        process.kill()
        code, out, err = ended(process)
        left = sorted(path.name for path in (killed / "checkpoints").glob("*"))
        print(f"seed {seed}: killed {1000 * after:.0f} ms after step {at}, leaving {left}")
        assert code == -signal.SIGKILL, (code, out, err)
    code, out, err = ended(start("resume", killed))
    assert code == 0 and "resuming" in out, (out, err)
    assert digest(experiment, killed) == digest(experiment, whole)
    assert numbers(killed) == numbers(whole)
    assert not [path for path in killed.rglob("*tmp*")]


def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def pair(start, *words, devices):
    """Two processes that run the same command together."""
    where = address()
    return [start(*words, "--distributed", f"{where}/2/{index}", devices=devices) for index in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("index, says", [(0, "process 1 of 2 did not come in 3 s"), (1, "process 0 did not answer at")])
def test_a_process_whose_partner_does_not_come_ends_with_a_line_that_names_it(index, says, start, tmp_path):
    write_config(tmp_path, tiny(mesh__fsdp=2))
    code, out, err = ended(start("my.py", "--distributed", f"{address()}/2/{index}", "--distributed-timeout", 3))
    waits, error = err.splitlines()
    assert code == 2 and out == "" and not (tmp_path / "runs").exists(), (out, err)
    assert waits.startswith(f"process {index} of 2 waits") and error.startswith(f"error: {says}"), err


@pytest.mark.slow
@pytest.mark.parametrize("survivor", [0, 1])
def test_a_process_whose_partner_is_killed_ends_and_says_how_to_continue(survivor, start, numbers, tmp_path):
    write_config(tmp_path, tiny(training__steps=10**5, training__eval_every=10**5, training__checkpoint_every=50, mesh__fsdp=2))
    folder = tmp_path / "runs" / "two"
    processes = pair(start, "my.py", "--run.name", "two", devices=1)
    wait_for(60, folder, processes[0])
    processes[1 - survivor].kill()
    code, _, err = ended(processes[survivor])
    assert "Traceback (most recent call last)" not in err, err  # the error arrived in Python, and was not taken
    if code == -signal.SIGABRT:  # JAX noticed first
        pytest.skip("JAX ended the process before the error arrived in Python")
    assert code == 1, err
    advice = f"continue with, in all processes: train.py resume {Path('runs/two')}"
    assert any("another process of this run has ended" in line and line.endswith(advice) for line in err.splitlines()), err
    resumed = start("resume", folder, devices=2)
    wait_for(numbers(folder)[-1]["step"] + 1, folder, resumed)


@pytest.mark.slow
def test_two_processes_with_different_settings_both_end_before_the_first_step(start, tmp_path):
    write_config(tmp_path, tiny(mesh__fsdp=2))
    where = address()
    words = (("--optimizer.learning-rate", 0.5), ())
    processes = [start("my.py", *more, "--distributed", f"{where}/2/{index}") for index, more in enumerate(words)]
    (code, _, first), (other, _, second) = map(ended, processes)
    assert code == other == 2 and not (tmp_path / "runs").exists(), (first, second)
    assert "process 1 differs from process 0: optimizer.learning_rate is 0.001 here, 0.5 there; start all with the same" in second
    assert "process 1 differs from process 0 in settings, versions or data" in first


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_one_process_resumes_bitwise(start, digest, numbers, tmp_path):
    """Bitwise, since sums over two devices have one order only."""
    often = dict(training__eval_every=300, training__checkpoint_every=200, training__log_every=20)
    experiment = tiny(training__steps=1500, **often, mesh__fsdp=2, model__dropout=0.1)
    write_config(tmp_path, experiment)
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    code, _, err = ended(start("my.py", "--run.name", "one", devices=2))
    assert code == 0, err
    processes = pair(start, "my.py", "--run.name", "two", devices=1)
    wait_for(40, two, processes[0])
    processes[1].terminate()
    (first, out, _), (second, silent, _) = results = [ended(process) for process in processes]
    assert first == second == 128 + signal.SIGTERM and silent == "", results
    step = training.Checkpoints(two / "checkpoints").steps()[-1]
    assert f"saved {Path('runs/two')} at step {step};" in out and 40 <= step < 1500, results
    parts = {path.name for path in (two / "checkpoints" / str(step)).glob("ocdbt.process_*")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name != "one"] == ["two"]
    code, out, err = ended(start("resume", two, devices=2))
    assert code == 0 and f"at step {step}" in out, (out, err)
    assert numbers(two) == numbers(one)
    assert digest(experiment, two) == digest(experiment, one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "checkpoint"])
def test_two_processes_start_from_another_model_as_one_does(kind, start, digest, tmp_path):
    source = tmp_path / "source"
    model = {}
    if kind == "run":
        training.train(tiny(training__seed=7), source, console=quiet())
    else:
        tensors = mamba_tensors() | {"backbone.embeddings.weight": np.ones((32, 16), np.float32)}
        write(source, tensors, MAMBA | {"vocab_size": 32})
        model = {f"model__{name}": value for name, value in convert.settings(source).items() if name != "vocab_size"}
    experiment = tiny(**model, model__init_from=str(source), mesh__fsdp=2)
    write_config(tmp_path, experiment)
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    code, out, err = ended(start("my.py", "--run.name", "one", devices=2))
    assert code == 0 and f"initial parameters from {source}" in out, (out, err)
    for process in pair(start, "my.py", "--run.name", "two", devices=1):
        code, out, err = ended(process)
        assert code == 0, (out, err)
    assert digest(experiment, two) == digest(experiment, one)


@pytest.fixture
def texts(tmp_path):
    """A folder of text, small enough for a test: documents of 60 to 600 bytes, some of them held out."""
    (tmp_path / "texts").mkdir()
    for number in range(40):
        line = f"document {number}: {number * number} and some more, "
        (tmp_path / "texts" / f"{number}.txt").write_text(line * (2 + 7 * number % 11))


STREAM = {
    "task": "text(source='texts', length=16, batch_size=8, stream=True, held_out=0.2, eval_tokens=512)",
    "model.layers": ("gla(heads=2)",),
    "training.micro_batches": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, STREAM], ids=["devices", "files"])
def test_two_processes_of_two_devices_train_and_evaluate_as_one_of_four(values, start, numbers, texts, tmp_path, monkeypatch):
    """To rounding, since sums over four devices are taken in another order; each process reads its own rows of a file."""
    monkeypatch.chdir(tmp_path)
    experiment = tiny(training__steps=12, mesh__fsdp=2, mesh__replica=2, model__dropout=0.1)
    write_config(tmp_path, config.replace(experiment, values))
    for name, processes in (
        ("one", [start("my.py", "--run.name", "one", devices=4)]),
        ("two", pair(start, "my.py", "--run.name", "two", devices=2)),
    ):
        assert [code for code, _, _ in map(ended, processes)] == [0] * len(processes), name
    runs = tmp_path / "runs"
    for one, other in zip(numbers(runs / "one"), numbers(runs / "two"), strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"kind", "eval_set", "position_loss"}:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-6, err_msg=f"{key} of {one}")
    (code, alone, _), (first, together, _), (second, silent, err) = map(
        ended, [start("eval", "runs/two", devices=4), *pair(start, "eval", "runs/two", devices=2)]
    )
    assert code == first == second == 0 and silent == "" and ("held-out" if values else "pairs=2") in together, err
    assert together == alone


@pytest.mark.slow
def test_a_failed_write_in_one_of_two_processes_ends_both_and_one_process_resumes(start, numbers, tmp_path):
    write_config(tmp_path, tiny(training__steps=5000, training__eval_every=5000, training__checkpoint_every=50, mesh__fsdp=2))
    folder = tmp_path / "runs" / "two"
    processes = pair(start, "my.py", "--run.name", "two", devices=1)
    wait_for(60, folder, processes[0])
    lines = folder / "metrics.jsonl"
    aside = lines.rename(folder / "aside")
    lines.mkdir()
    (first, _, err), (second, _, _) = results = [ended(process) for process in processes]
    assert first == 1 and second != 0, results
    assert "metrics.jsonl: Is a directory; the last good checkpoint is" in err and f"train.py resume {Path('runs/two')}" in err
    lines.rmdir()
    aside.rename(lines)
    resumed = start("resume", folder, devices=2)
    wait_for(numbers(folder)[-1]["step"] + 1, folder, resumed)
