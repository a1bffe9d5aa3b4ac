"""Output that cannot be printed: dropped or written plainer, never the end of a run, never another exit code."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from helpers.tiny import stopping, tiny
from seqzoo import cli, training
from seqzoo.entry import more_steps_command, program, resume_command
from seqzoo.training.run import distributed

ROOT = Path(__file__).parents[2]


class Broken(io.StringIO):
    """A stream that refuses everything with one error."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text=""):
        raise self.error

    flush = write


ERRORS = {
    "closed pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "no terminal": OSError(errno.EIO, "Input/output error"),
    "closed file": ValueError("I/O operation on closed file"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_run_goes_on_when_nothing_can_be_printed(error, tmp_path):
    console = Console(file=Broken(error), width=100)
    assert training.train(stopping(tiny(), 1), tmp_path / "run", console=console)["step"] == 1
    assert isinstance(console.file, Broken)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_the_exit_code_is_that_of_the_command_and_one_line_says_that_printing_fails(error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert cli.main(["help"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: standard output fails (") and isinstance(sys.stdout, Broken)
    monkeypatch.setattr(sys, "stderr", Broken(error))
    assert cli.main(["help", "nothing-of-that-name"]) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("words", [["help", "gla"], ["configs/quickstart.py", "--dry-run"], ["inspect", "configs/mqar.py"]])
def test_text_that_the_encoding_lacks_is_written_plainer(encoding, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(words) == 0
    out.flush()
    shown = out.buffer.getvalue().decode(encoding)
    assert len(shown) > 500 and (encoding == "utf-8" or "●" not in shown)


@pytest.mark.parametrize("end", ["closed", "/dev/full"])
def test_a_process_whose_output_is_closed_ends_as_it_would_have(end):
    read, write = os.pipe()
    os.close(read)
    with open(write if end == "closed" else end, "w", encoding="utf-8") as out:
        done = subprocess.run([sys.executable, ROOT / "train.py", "help"], stdout=out, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done
    assert len(done.stderr.splitlines()) == 1 and "standard output fails" in done.stderr


def test_ctrl_c_during_the_imports_is_quiet():
    words = [sys.executable, "-X", "importtime", ROOT / "train.py", "help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "numpy" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and not [line for line in err.splitlines() if "import time:" not in line], err


def test_ctrl_c_before_training_is_one_line(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "help", stop)
    assert cli.main(["help"]) == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C\n"
    ended = []
    monkeypatch.setattr(distributed, "abort", ended.append)
    assert cli.main(["help"]) == 130 and ended == [130]


def test_names_that_are_not_utf_8_are_refused_in_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(ROOT / "configs" / "mqar.py"), "--run.folder", os.fsdecode(b"\xff")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert r"folder is '\udcff'; wanted a name in UTF-8" in line and not list(tmp_path.iterdir())


def test_hints_name_the_command_as_it_was_called_and_the_comparison_of_a_member(monkeypatch, tmp_path):
    member = tmp_path / "c d" / "runs" / "0-gla"
    member.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/seqzoo"])
    assert resume_command(member) == f"seqzoo resume '{member}'"
    assert more_steps_command(member) == f"seqzoo resume '{member}' --training.steps N --changed"
    (tmp_path / "c d" / "config.json").write_text("{}", encoding="utf-8")
    assert resume_command(member) == f"seqzoo resume '{tmp_path / 'c d'}'"
    assert more_steps_command(member) == f"seqzoo compare '{tmp_path / 'c d'}' --continue-unfinished --steps N"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert program() == "train.py"
