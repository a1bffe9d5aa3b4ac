"""The small things around the loop: metrics file, folders, signals, progress."""

import importlib
import io
import json
import os
import re
import signal
import time
from pathlib import Path

import jax
import pytest
from rich.console import Console

from helpers.tiny import quiet, stopping, tiny
from seqzoo import training
from seqzoo.cli import main
from seqzoo.data.atomic_io import WriteError
from seqzoo.data.errors import DataError, UnreadableError
from seqzoo.data.json_files import DamagedFile
from seqzoo.training import CheckpointError
from seqzoo.training.progress import Reporter
from seqzoo.training.run import distributed, metrics, run_dir, signals
from seqzoo.training.run.metrics import BestEvaluation
from seqzoo.training.run.run_dir import RunDirError
from seqzoo.training.run.signals import StopSignals


def test_metrics_of_later_steps_are_dropped_and_a_torn_line_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = metrics.MetricsFile(path)
    kinds = ({"kind": "train"}, {"kind": "eval", "eval_set": "a", "accuracy": 0.5})
    lines = lambda steps: [{"step": s, **kind} for s in steps for kind in kinds]
    first.append(*lines((1, 2, 3)))
    with path.open("a") as file:
        file.write('{"step": 4, "ki')
    again = metrics.MetricsFile(path, step=2)
    assert metrics.read(path) == lines((1, 2))
    assert again.evaluated == 2


def test_a_doubled_line_counts_once_for_every_reader_and_is_reported_once(tmp_path, numbers, capsys):
    """Two processes write every line twice where the file system has no locks."""
    folder, experiment = tmp_path / "run", tiny(training__steps=6)
    training.train(stopping(experiment, 4), folder, console=quiet())
    path, once = folder / "metrics.jsonl", numbers(folder)
    path.write_text("".join(2 * line for line in path.read_text().splitlines(keepends=True)))
    assert numbers(folder) == once
    assert main(["inspect", str(folder)]) == 0 and capsys.readouterr().out.count("evaluation at step 3, pairs=1") == 1
    for reports in (1, 0):
        console = quiet()
        training.train(stopping(experiment, 1), folder, console=console)
        said = f"note: {path} had {len(once)} doubled lines; each counts once\n"
        assert console.file.getvalue().count(said) == console.file.getvalue().count("doubled lines") == reports
    assert [line["step"] for line in numbers(folder) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


EVALUATIONS = [  # accuracy and bits per byte of two evaluation sets; the second is the best by either
    ((0.2, 3.0), (0.4, 3.0)),
    ((0.5, 1.0), (0.3, 2.0)),
    ((0.4, 2.0), (0.4, 1.0)),
    ((0.1, 4.0), (0.1, 4.0)),
]


@pytest.mark.parametrize("text", [False, True])
def test_the_best_evaluation_is_known_after_each_and_the_first_of_equal_ones(text):
    best, found = BestEvaluation(), []
    assert best.step is None
    for step, sets in enumerate(EVALUATIONS):
        numbers = [{"accuracy": accuracy} | ({"bits_per_byte": bits} if text else {}) for accuracy, bits in sets]
        best.add(step, dict(zip("ab", numbers, strict=True)))
        found.append(best.step)
    assert found == [0, 1, 1, 1]


def test_metrics_refuse_numbers_that_json_has_not(tmp_path):
    with pytest.raises(ValueError):
        metrics.MetricsFile(tmp_path / "m").append({"step": 1, "kind": "train", "loss": float("nan")})


def test_a_taken_folder_name_gets_a_number(tmp_path):
    assert [run_dir.create_run_dir(tmp_path / "runs", "a").name for _ in range(3)] == ["a", "a-2", "a-3"]


def test_a_folder_created_by_another_process_at_the_same_time_is_not_reused(tmp_path, monkeypatch):
    """Another run makes the folder at the worst moment: after any look at the disk, before our mkdir."""
    make = Path.mkdir

    def beaten(path, *args, **kwargs):
        if path == tmp_path / "a":
            make(path, exist_ok=True)
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", beaten)
    assert run_dir.create_run_dir(tmp_path, "a") == tmp_path / "a-2"


def test_the_error_for_a_folder_that_is_not_a_run_lists_the_runs_inside_it(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"no config.json. Runs inside it: {re.escape(str(tmp_path / 'one'))}"):
        run_dir.load_config(tmp_path)


def test_the_environment_names_versions_device_and_command():
    environment = run_dir.environment()
    assert {"seqzoo", "jax", "flax", "optax"} <= set(environment["versions"])
    assert environment["device"]["platform"] == "cpu" and environment["device"]["count"] == 8
    assert environment["git"] is None or set(environment["git"]) == {"revision", "changed"}


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened for 5 s")


@pytest.mark.parametrize("number", [*signals.ORDERS, *signals.WARNINGS])
def test_every_signal_requests_a_stop_and_the_second_ends_the_process_if_a_person_sends_it(number):
    said, codes = [], []
    with StopSignals(said.append, exit=codes.append) as stop:
        os.kill(os.getpid(), number)
        wait_until(lambda: said)
        assert stop.caught == number and f"{number.name}: saving after this step" in said[0]
        os.kill(os.getpid(), number)
        if number in signals.ORDERS:
            wait_until(lambda: codes)
        os.kill(os.getpid(), signal.SIGTERM)  # after a warning, it is the first of its kind
        wait_until(lambda: len(said) == (2 if number in signals.WARNINGS else 3))
    assert codes == ([] if number in signals.WARNINGS else [128 + number, 128 + signal.SIGTERM])


def test_a_signal_during_the_compilation_says_that_it_waits_for_it():
    said = []
    with StopSignals(said.append) as stop, stop.waiting_for("the compilation"):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: said)
    assert "SIGTERM: saving after the compilation" in said[0] and stop.doing == "this step"


def test_under_nohup_the_end_of_the_terminal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(print) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(stop.stopping)
        assert stop.caught == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_signal_requests_a_stop_and_the_second_ends_the_process():
    said, codes = [], []
    with StopSignals(said.append, exit=codes.append) as stop:
        assert not stop.stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(stop.stopping)
        assert stop.caught == signal.SIGTERM and codes == []
        wait_until(lambda: said)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: codes)
    assert codes == [128 + signal.SIGINT] and "SIGTERM: saving" in said[0] and "SIGINT again" in said[1]


def test_with_several_processes_sigterm_is_left_to_jax_and_sigint_becomes_one(monkeypatch):
    """All stop at the call of `stopping` that JAX names, once, and not when a signal comes to this process."""
    polls = iter([False, False, True])
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed, "reached_preemption", lambda: next(polls))
    said, codes, terms = [], [], []
    before = signal.signal(signal.SIGTERM, lambda *_: terms.append(1))  # in JAX's place
    try:
        with StopSignals(said.append, exit=codes.append) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: terms)
            assert stop.caught is None and codes == []
            assert [stop.stopping() for _ in range(5)] == [False, False, True, True, True]
            assert stop.caught == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: codes)
        assert codes == [128 + signal.SIGINT] and len(terms) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_results_and_errors_of_process_0_reach_all_processes(monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed, "is_main_process", lambda: True)
    monkeypatch.setattr(distributed, "_broadcast", lambda message: sent.append(message) or message)
    assert distributed.from_main_process(lambda: [3]) == [3]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        distributed.from_main_process(Path("nowhere").read_text)
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(distributed, "_broadcast", lambda _: sent.pop(0))
    assert distributed.from_main_process(lambda: 1 / 0) == [3]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        distributed.from_main_process(lambda: 1 / 0)


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("call", "there", "wanted"),
    [
        *((raising(error("a")), error, re.escape("a")) for error in (WriteError, DataError, CheckpointError, RunDirError, OSError)),
        (raising(UnreadableError("a")), DataError, "a"),
        (raising(ZeroDivisionError("a")), RuntimeError, "ZeroDivisionError in process 0: a"),
        (lambda: Path("a"), RuntimeError, "TypeError in process 0: .*PosixPath is not JSON serializable"),
    ],
)
def test_an_error_of_process_0_travels_as_json_under_the_nearest_known_class(monkeypatch, call, there, wanted):
    sent = []
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    monkeypatch.setattr(distributed, "is_main_process", lambda: True)
    monkeypatch.setattr(distributed, "_broadcast", lambda message: sent.append(message) or message)
    with pytest.raises(Exception):  # noqa: B017  (the error itself, in process 0)
        distributed.from_main_process(call)
    json.loads(sent[0])
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(distributed, "_broadcast", lambda _: sent[0])
    with pytest.raises(there, match=f"^{wanted}") as caught:
        distributed.from_main_process(lambda: None)
    assert type(caught.value) is there


def test_every_error_that_may_be_sent_exists():
    for name, module in distributed.ERRORS.items():
        assert str(getattr(importlib.import_module(module), name)("a")) == "a"


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("off", []),
        ("auto", [{"initialization_timeout": 120}]),
    ],
)
def test_the_option_distributed_leaves_a_cluster_to_jax(monkeypatch, how, wanted):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: calls.append(settings))
    distributed.initialise(how)
    assert calls == wanted


def test_a_number_that_is_no_json_is_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "loss": NaN}\n', encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"line 1 of .*metrics\.jsonl is damaged: .*NaN is no JSON"):
        metrics.MetricsFile(path, 1)


def test_every_process_must_have_a_part_in_the_mesh(monkeypatch):
    monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
    distributed.check_mesh(jax.make_mesh((8,), ("fsdp",)))
    with pytest.raises(ValueError, match="the mesh uses 4 of 8 devices; wanted all of them"):
        distributed.check_mesh(jax.make_mesh((4,), ("fsdp",), devices=jax.devices()[:4]))


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with StopSignals(print):
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in before} == before


def test_lines_are_plain_where_there_is_no_terminal():
    console = quiet()
    with Reporter(console, 0, 10) as reporter:
        reporter.line(5, {"loss": 1.5, "accuracy": 0.25}, 12345.6, 65.0)
        reporter.print("softmax(window=[4])")
    assert console.file.getvalue() == ("step 5/10  loss 1.5000  accuracy 0.250  12,346 tokens/s  1:05 left\nsoftmax(window=[4])\n")


def test_on_a_terminal_there_is_a_bar_with_loss_accuracy_rate_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Reporter(console, 0, 10) as reporter:
        reporter.step(5, {"loss": 1.5, "accuracy": 0.25}, 12345.6, 65.0)
        reporter.line(5, {"loss": 1.5, "accuracy": 0.25}, 12345.6, 65.0)
    shown = console.file.getvalue()
    assert "5/10" in shown and "loss 1.5000  accuracy 0.250  12,346 tokens/s  1:05 left" in shown and "step 5/10" not in shown
