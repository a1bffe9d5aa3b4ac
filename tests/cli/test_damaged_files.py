"""Damaged files of a run: a command that reads one ends with a line that names it, or works; never with a traceback."""

import json
import os
import shutil
import signal

import pytest
from rich.console import Console

from helpers import tiers
from helpers.tiny import quiet, tiny
from seqzoo import config, training
from seqzoo.cli import main
from seqzoo.data.json_files import JSON_BYTES, DamagedFile, read_json
from seqzoo.training.run.checkpoint import damage as defect

SMALL = ("config.json", "environment.json", "metrics.jsonl", "summary.json", "saved.json", "checkpoints/6/sha256.json")
DEEP = b"[" * 100_000 + b"]" * 100_000


def in_the_middle(line):
    """The file with one more line between its lines."""

    def damage(data):
        first, rest = data.split(b"\n", 1)
        return b"\n".join([first, line, rest])

    return damage


def nulls(data):
    """The first object of the file with null for every value."""
    first = data.splitlines()[0] if b"\n{" in data else data
    return json.dumps(dict.fromkeys(json.loads(first))).encode() + b"\n"


DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2].rstrip(b"}\n"),
    "null": lambda data: b"null\n",
    "a list": lambda data: b"[]\n",
    "a number": lambda data: b"3\n",
    "an empty object": lambda data: b"{}\n",
    "not UTF-8": lambda data: b'{"\xff": 1}\n',
    "deep": lambda data: DEEP + b"\n",
    "deep inside": lambda data: b'{"model": ' + DEEP + b"}\n",
    "nulls for values": lambda data: nulls(data),
    "a line of nothing": in_the_middle(b""),
    "a torn line": in_the_middle(b'{"step": 1, "ki'),
    "a line that is not UTF-8": in_the_middle(b'{"\xfe'),
    "a line with other fields": in_the_middle(b'{"steps": 1}'),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    training.train(tiny(), folder, console=quiet())
    return folder


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run with one file damaged."""

    def make(name, damage):
        copy = tmp_path / "run"
        shutil.copytree(run, copy)
        path = copy / name
        data = path.read_bytes()
        path.write_bytes(DAMAGES[damage](data))
        return copy

    return make


READERS = ("inspect", "plot", "resume")


def contents(folder):
    """The bytes of all files of a run but its lock, which says who held it last."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


CASES = [(name, damage) for name in SMALL for damage in DAMAGES if name == "metrics.jsonl" or "line" not in damage]


@pytest.mark.parametrize(("name", "damage"), tiers.a_third(CASES))
def test_a_damaged_file_gives_one_line_that_names_it(damaged, tmp_path, capsys, monkeypatch, name, damage):
    monkeypatch.chdir(tmp_path)
    folder = damaged(name, damage)
    before = contents(folder)
    for command in READERS:
        code = main([command, str(folder)])
        said = capsys.readouterr().err
        assert code in (0, 1, 2)
        if code:
            assert said.startswith("error: ") and said.count("\n") == 1, said[:2000]
            assert name in said or str(folder) in said or "Metrics of softmax: none yet" in said, said
            assert len(said) < 1000, said[:2000]
            assert contents(folder) == before
        else:
            before = contents(folder)


PLACES = {  # something else in the place of a file
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


FILES = [*SMALL, "lock", "checkpoints/6/_CHECKPOINT_METADATA", "checkpoints/6/manifest.ocdbt"]


# Each place begins with another file, so that the third has every file and every place.
@pytest.mark.parametrize(
    ("name", "place"), tiers.a_third((name, place) for n, place in enumerate(PLACES) for name in FILES[n:] + FILES[:n])
)
def test_what_is_no_regular_file_is_not_read(run, tmp_path, capsys, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink()
    PLACES[place](path)
    signal.alarm(60)  # a pipe that is opened waits for ever
    try:
        for command in READERS:
            code = main([command, "run"])
            said = capsys.readouterr().err
            assert code in (0, 1, 2) and said.count("\n") == (code != 0), said[:2000]
            assert not code or path.name in said, said
        if name.startswith("checkpoints"):
            assert path.name in str(defect(path.parent))
    finally:
        signal.alarm(0)


def test_a_file_that_grew_too_large_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(JSON_BYTES + 1)
    with pytest.raises(DamagedFile, match=r"config\.json has more than 268,435,456 bytes"):
        read_json(tmp_path / "config.json")


def test_a_digest_lists_every_file(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "6" / "extra").write_bytes(b"1")
    assert training.Checkpoints(copy / "checkpoints").steps()[-1] == 6
    assert defect(copy / "checkpoints" / "6") == "extra is not listed in sha256.json"
    assert defect(run / "checkpoints" / "6") is None


def test_a_damaged_member_does_not_end_a_comparison(tmp_path):
    from seqzoo import compare

    comparison = config.Comparison(base=tiny(), axes={"training.seed": (0, 1)})
    folder = tmp_path / "comparison"
    train = lambda experiment, folder, console: training.train(experiment, folder, console=console)
    compare.run(comparison, folder, console=Console(quiet=True), run=train)
    (path,) = folder.glob("runs/0-*/summary.json")
    path.write_text("[]")
    results = compare.run(comparison, folder, console=Console(quiet=True), run=train)
    assert str(path) in results["runs"][0]["problem"] and results["runs"][1]["finished"]


def test_an_edited_config_that_fits_no_model_is_refused_in_one_line(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace("softmax(heads=2)", "softmax(heads=3)"))
    assert main(["resume", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "heads=3 does not divide d_model=16" in said and said.count("\n") == 1


UNFIT = {
    ("--model.d-model", "32"): "parameter ",
    ("--optimizer.rule", "sgd"): "(optimizer.rule, accumulate_steps)",
    ("--training.ema", "0.9"): "(training.ema)",
}


@pytest.mark.parametrize(("words", "names"), UNFIT.items(), ids=lambda words: words[0])
def test_settings_that_do_not_fit_the_checkpoints_change_nothing(run, tmp_path, capsys, words, names):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = contents(copy)
    assert main(["resume", str(copy), "--training.steps", "9", *words, "--changed"]) == 1
    said = capsys.readouterr().err
    assert "wanted its files and its settings as saved" in said and names in said and said.count("\n") == 1
    assert contents(copy) == before
    assert main(["resume", str(copy)]) == 0
