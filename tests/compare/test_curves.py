"""`plot` draws the numbers of metrics.jsonl, one curve per run, labelled by the settings in which the runs differ."""

import json

import numpy as np
import pytest

from helpers.tiny import tiny
from seqzoo import cli
from seqzoo.compare import curves
from seqzoo.compare.colours import colour
from seqzoo.config import Comparison


def line(step, kind, **values):
    return {"step": step, "kind": kind, "tokens": 128 * step, "seconds": 0.5 * step, **values}


def keep(folder, experiment, lines):
    """Writes a run folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(experiment.model_dump_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


def lines(scale):
    training = [line(step, "train", loss=scale / step, mfu=None) for step in (1, 2, 4)]
    return training + [
        line(4, "eval", eval_set=name, loss=scale * part, accuracy=part) for name, part in (("a", 0.25), ("b", 0.75))
    ]


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in their mixer."""
    return [
        keep(tmp_path / "one", tiny(model__layers=("gla(heads=2)",)), lines(1.0)),
        keep(tmp_path / "two", tiny(model__layers=("softmax(heads=2)",)), lines(2.0)),
    ]


def drawn(axes):
    """{colour: (x, y)} of the curves of a panel."""
    return {curve.get_color(): (list(curve.get_xdata()), list(curve.get_ydata())) for curve in axes.get_lines()}


@pytest.mark.parametrize(("x", "places"), [("step", [1, 2, 4]), ("tokens", [128, 256, 512]), ("seconds", [0.5, 1.0, 2.0])])
def test_training_and_evaluation_are_drawn_against_steps_tokens_or_seconds(runs, x, places):
    left, right = curves.draw(runs, "loss", x).axes
    assert drawn(left) == {colour("gla"): (places, [1.0, 0.5, 0.25]), colour("softmax"): (places, [2.0, 1.0, 0.5])}
    assert drawn(right) == {
        colour("gla"): (places[-1:], [0.5]),
        colour("softmax"): (places[-1:], [1.0]),
    }  # means over evaluation sets
    assert {text.get_text() for text in right.texts} == {"gla", "softmax"} and not left.texts


def test_a_metric_of_evaluation_alone_has_one_panel(runs):
    (axes,) = curves.draw(runs, "accuracy").axes
    assert drawn(axes)[colour("gla")] == ([4], [0.5]) and "accuracy, evaluation" in axes.get_title()


def test_a_run_without_evaluation_is_named_where_it_is_drawn(runs, tmp_path):
    young = keep(tmp_path / "young", tiny(model__layers=("mamba2",)), lines(3.0)[:2])
    left, right = curves.draw([*runs, young]).axes
    assert {text.get_text() for text in left.texts} == {"mamba2"} and len(right.texts) == 2


def test_all_runs_of_a_comparison_are_drawn(tmp_path):
    comparison = Comparison(base=tiny(), axes={"model.layers": ("gla", "linear"), "training.seed": (0, 1)})
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "config.json").write_text(comparison.model_dump_json())
    for number, (_, experiment) in enumerate(comparison.experiments()):
        keep(tmp_path / "many" / "runs" / f"{number}-x", experiment, lines(1.0 + number))
    alone = keep(tmp_path / "alone", tiny(model__layers=("softmax",)), lines(9.0))
    left, right = curves.draw([alone, tmp_path / "many"]).axes
    assert [curve.get_ydata()[0] for curve in left.get_lines()] == [9.0, 1.0, 2.0, 3.0, 4.0]
    named = {text.get_text() for text in right.texts}
    assert named == {"softmax seed=0", "gla seed=0", "gla seed=1", "linear seed=0", "linear seed=1"}


def test_runs_that_differ_in_nothing_are_named_by_their_folders(tmp_path):
    folders = [keep(tmp_path / name, tiny(run__name=name), []) for name in ("a", "b")]
    assert list(curves.labels(curves.find(folders)).values()) == [f"softmax in {folder}" for folder in folders]


def test_the_loss_by_position_is_that_of_the_last_evaluation(tmp_path):
    octaves = lambda *losses: {"from": [0, 1, 2, 4][: len(losses)], "loss": losses}
    parts = [line(2, "eval", eval_set="dropped", position_loss=octaves(5.0))]
    parts += [line(step, "eval", eval_set="long", position_loss=octaves(None, 3.0, 2.0, 1.0 / step)) for step in (2, 4)]
    parts += [line(4, "eval", eval_set="short", position_loss=octaves(4.0, 3.0))]
    run = keep(tmp_path / "run", tiny(model__layers=("gla",)), parts)
    (axes,) = curves.draw([run], "position_loss").axes
    long, short = axes.get_lines()
    assert (list(long.get_xdata()), list(long.get_ydata())) == ([2, 4, 8], [3.0, 2.0, 0.25])  # nothing was scored at 0
    assert (list(short.get_xdata()), list(short.get_ydata())) == ([1, 2], [4.0, 3.0])
    assert [text.get_text() for text in axes.texts] == ["gla long", "gla short"] and axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("metric", "x", "says"),
    [
        ("los", "step", "no run has a metric 'los'. Did you mean 'loss'\\? Metrics of .*: accuracy, loss"),
        ("mfu", "step", "no run has a metric 'mfu'"),  # None everywhere: nothing to draw
        ("loss", "seconds", "the metrics of softmax.* have no 'seconds'; wanted --x step"),
    ],
)
def test_an_unknown_metric_is_refused_and_the_known_ones_are_listed(runs, tmp_path, metric, x, says):
    old = [{key: value for key, value in each.items() if key != "seconds"} for each in lines(1.0)]
    with pytest.raises(ValueError, match=says):
        curves.draw([runs[0], keep(tmp_path / "old", tiny(), old)], metric, x)


def test_the_command_writes_the_picture_it_names(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", "one", "two"]) == 0
    assert cli.main(["plot", "one", "--metric", "accuracy", "--x", "tokens", "--out", "picture.png"]) == 0
    assert capsys.readouterr().out == "written: loss.png\nwritten: picture.png\n"
    from matplotlib.image import imread

    assert np.ptp(imread(tmp_path / "loss.png")) > 0.5 and (tmp_path / "picture.png").is_file()
    assert cli.main(["plot", "one", "--out", "picture.svg"]) == 0
    assert (tmp_path / "picture.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["one", "--metric", "los"], 2, "Did you mean 'loss'?"),
        (["none"], 2, "none is not a run folder"),
        ([], 2, "plot needs run folders"),
        (["one", "--out", "a.gif"], 2, "--out a.gif: wanted a file that ends in .png, .svg, .pdf"),
        (["one", "--out", "nowhere/a.png"], 1, "cannot write nowhere/a.png"),
    ],
)
def test_wrong_arguments_of_plot_are_reported(runs, tmp_path, monkeypatch, capsys, words, code, says):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", *words]) == code
    assert says in capsys.readouterr().err and not list(tmp_path.glob("*.png"))
