"""Odd values for every setting of every spec and for every option of the command line: accepted, or refused in one line.

docs/training.md says how many there are. A refused one leaves nothing behind. The slow tier takes a third of the values, for each
setting another third; `pytest -m exhaustive` has the others.
"""

import pytest

from helpers import tiers
from helpers.tiny import TINY, quiet, tiny
from seqzoo import cli, compare, config, training
from seqzoo.cli.plot import Plot
from seqzoo.cli.reference import entries
from seqzoo.cli.text import Prepare
from seqzoo.config import Experiment
from seqzoo.specs import Spec

DEEP = ()
for _ in range(50):
    DEEP = (DEEP,)
VALUES = (
    *(None, True, False, 0, 1, -1, 3, 10**6, 2**31, 10**30),
    *(-0.0, 0.5, -0.5, 1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")),
    *("", "x", "é", "None", "a" * 1000, "softmax", "nan", (), (1,), (0, -1), ("x", 2.5), DEEP),
)
KIND_PATH = {  # the setting of an experiment that holds a spec of this kind
    "mixer": "model.layers",
    "channel mixer": "model.channel",
    "task": "task",
    "update rule": "optimizer.rule",
    "schedule": "optimizer.schedule",
    "gradient accumulation rule": "optimizer.accumulate_steps",
}


def refusal(call):
    """The ValueError of a call, which must have one line, or None; any other exception is the test's failure."""
    try:
        call()
    except ValueError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 2000, f"{error}"
        return error
    return None


@tiers.thirds
@pytest.mark.parametrize("each", tuple(entries()), ids=lambda each: f"{each.kind} {each.name}")
def test_odd_values_of_a_setting_build_or_are_refused_in_one_line(each, third):
    path, problems, count = KIND_PATH[each.kind], [], 0
    for number, setting in enumerate(each.settings):
        for value in VALUES[(number + third) % 3 :: 3]:
            spec = str(Spec(each.name, ((setting.name, value),)))
            count += 1
            try:
                built = []
                values = {path: (spec,) if path == "model.layers" else spec}
                if refusal(lambda values=values, built=built: built.append(config.replace(tiny(), values))) is None:
                    refusal(lambda built=built: training.check(built[0]))
            except Exception as error:
                problems.append(f"{spec[:100]}: {type(error).__name__}: {str(error)[:200]}")
    print(count, "values")
    assert not problems, "\n".join(problems)


WORDS = (
    *(
        "",
        " ",
        "None",
        "True",
        "0",
        "-1",
        "3",
        "-0.5",
        "1e-30",
        "1e400",
        "nan",
        "10" * 20,
        "\u0663",
        "x",
        "\u00e9",
        "\udcff",
        "a/b",
    ),
    *("..", "/dev/null", "/dev/null/x", "a" * 300, "*", "[a]", "a\\b", "a\nb", "\x1b[2J", "--"),
    *(
        "()",
        "{}",
        "(",
        "(1, 2)",
        "{'a': 1}",
        "[" * 300,
        "softmax(",
        "gla(heads=)",
        "gla(heads=2, heads=2)",
        "gla(heads=print(1))",
        ",",
        "a=b",
        "1:2:3",
    ),
)
OPTIONS = {
    "train": (config.settings(Experiment()), ("my.py",)),
    "resume": (config.settings(Experiment()), ("run",)),
    "eval": ({f"mesh.{name}": None for name in config.Mesh.model_fields} | {"step": None}, ("run",)),
    "generate": (config.Generation.model_fields, ("run",)),
    "plot": (Plot.model_fields, ("run",)),
    "prepare": (Prepare.model_fields, ("texts", "out")),
    "--sweep": ({"model.layers": None, "optimizer.learning_rate": None, "task": None, "mesh.rules": None}, ("my.py",)),
}
CASES = [(command, option) for command, (options, _) in OPTIONS.items() for option in options]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a config file, a finished run and some texts."""
    folder = tmp_path_factory.mktemp("odd") / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "my.py").write_text(f"from seqzoo.config import Experiment, replace\nconfig = replace(Experiment(), {TINY!r})\n")
    (folder / "texts").mkdir()
    for number in range(40):
        (folder / "texts" / f"{number}.txt").write_text("some words")
    training.train(tiny(), folder / "run", console=quiet())
    return folder


def contents(folder):
    """Every file below the parent of the parent of a folder with its bytes; a lock says who held it last."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.parents[1].rglob("*") if path.name != "lock"}


@tiers.thirds
@pytest.mark.parametrize(("command", "option"), CASES, ids=lambda each: each)
def test_odd_words_for_an_option_run_or_are_refused_in_one_line_and_leave_nothing(
    folder, monkeypatch, capsys, command, option, third
):
    """The training itself is left out."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(training, "train", lambda *_, **__: {})
    monkeypatch.setattr(compare, "run", lambda *_, **__: {})
    problems, before = [], contents(folder)
    for word in WORDS[(CASES.index((command, option)) + third) % 3 :: 3]:
        given = [f"--{option.replace('_', '-')}={word}"]
        name = command
        if command == "--sweep":
            name, given = "train", ["--sweep", f"{option}={word}"]
        try:
            code = cli.main([name, *OPTIONS[command][1], *given])
        except SystemExit as stopped:
            code = stopped.code
        except BaseException as error:
            code = f"{type(error).__name__}: {str(error)[:300]}"
        said = capsys.readouterr()
        if code not in (0, 1, 2):
            problems.append(f"{given[0][:100]!r} ends with {code!r}")
        elif code and (said.err.count("\n") != 1 or not said.err.startswith("error: ") or len(said.err) > 3000):
            problems.append(f"{given[0][:100]!r} says {said.err[:600]!r}")
        elif code and contents(folder) != before:
            problems.append(f"{given[0][:100]!r} leaves {contents(folder).keys() ^ before.keys()}")
        before = contents(folder)
    assert not problems, "\n".join(problems)
