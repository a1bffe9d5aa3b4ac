"""The lock of a run folder: one process at a time trains in it, and a killed one leaves it free."""

import errno
import os
import subprocess
import sys

import pytest

from helpers.tiny import quiet, tiny
from seqzoo import training
from seqzoo.cli import main
from seqzoo.training.run import lock
from seqzoo.training.run.lock import LockedError, RunLock

HOLD = """
import sys, time
from pathlib import Path
from seqzoo.training.run.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    with pytest.raises(LockedError, match=f"is in use by process {holder.pid} on "):
        RunLock(tmp_path).acquire()
    holder.kill()
    holder.wait()
    free = RunLock(tmp_path)
    free.acquire()
    free.release()


def test_a_lock_that_is_released_can_be_taken_again(tmp_path):
    first = RunLock(tmp_path)
    first.acquire()
    assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    first.release()
    second = RunLock(tmp_path)
    second.acquire()
    second.release()


def test_no_run_starts_or_resumes_in_a_folder_in_use_and_nothing_there_changes(tmp_path, capsys):
    folder = tmp_path / "run"
    training.train(tiny(), folder, console=quiet())
    held = RunLock(folder)
    held.acquire()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(LockedError):
        training.train(tiny(), folder, console=quiet())
    assert main(["resume", str(folder)]) == 2
    assert f"{folder} is in use by process {os.getpid()}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    held.release()
    training.train(tiny(), folder, console=quiet())


def test_a_file_system_without_locks_is_reported_and_training_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "flock", refuse)
    console = quiet()
    assert training.train(tiny(), tmp_path / "run", console=console)["finished"]
    assert "lock cannot be locked (No locks available): let no other process train in this folder" in console.file.getvalue()
