"""Runs computed together by one vectorised step: each as if it were alone."""

import json
import math

import numpy as np
import pytest

from helpers.tiny import quiet, tiny
from seqzoo import compare, training
from seqzoo.config import Comparison
from seqzoo.training import together
from seqzoo.training.together import fit_together, train_together

BASE = dict(model__dropout=0.1, training__steps=4, training__eval_every=2, training__checkpoint_every=2)
EACH = [dict(optimizer__learning_rate=3e-3), dict(training__seed=1), dict(optimizer__rule="adamw(weight_decay=0.0)")]


def numbers(folder):
    """{(step, kind, eval set): loss} of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], line["kind"], line.get("eval_set")): line["loss"] for line in lines}


def assert_close(one, other):
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folders of the runs alone."""
    folders = []
    for number, each in enumerate(EACH):
        folders.append(tmp_path_factory.mktemp("alone") / f"{number}")
        training.train(tiny(**BASE | each), folders[-1], console=quiet())
    return folders


@pytest.mark.slow
def test_members_get_the_numbers_of_the_runs_alone(alone, tmp_path):
    runs = [(tiny(**BASE | each), tmp_path / f"{number}") for number, each in enumerate(EACH)]
    summaries = train_together(runs, console=quiet())
    for (_, folder), by_itself, summary in zip(runs, alone, summaries, strict=True):
        assert_close(numbers(folder), numbers(by_itself))
        assert summary["finished"] and summary == json.loads((folder / "summary.json").read_text())
    assert len({tuple(numbers(folder).values()) for _, folder in runs}) == 3


@pytest.mark.slow
def test_members_stop_where_they_are_asked_to_and_continue_together(alone, tmp_path):
    """One is half done when the others begin, and one is finished."""
    runs = [(tiny(**BASE | each), tmp_path / f"{number}") for number, each in enumerate(EACH)]
    training.train(tiny(**BASE | EACH[0] | dict(training__stop_after_steps=2)), runs[0][1], console=quiet())
    training.train(*runs[1], console=quiet())
    train_together(runs, console=quiet())
    for (_, folder), by_itself in zip(runs, alone, strict=True):
        assert_close(numbers(folder), numbers(by_itself))


@pytest.mark.slow
def test_a_member_that_diverges_and_one_that_is_solved_disturb_no_other(alone, tmp_path):
    wild = dict(optimizer__learning_rate=1e30, optimizer__schedule="constant(warmup_steps=0)", optimizer__clip_norm=None)
    calm = {name: value for name, value in wild.items() if name != "optimizer__learning_rate"}
    runs = [(tiny(**BASE | calm | each), tmp_path / f"{number}") for number, each in enumerate((EACH[1], wild, {}))]
    training.train(runs[0][0], tmp_path / "alone", console=quiet())
    first, second, third = train_together(runs, console=quiet())
    assert_close(numbers(tmp_path / "0"), numbers(tmp_path / "alone"))
    assert first["finished"] and isinstance(second, training.Diverged) and third["finished"]
    assert math.isfinite(min(numbers(tmp_path / "2").values()))


@pytest.mark.slow
def test_a_comparison_trains_runs_with_equal_programs_together(tmp_path):
    axes = {"model.layers": ("softmax(heads=2)", "gla(heads=2)"), "training.seed": (0, 1, 2)}
    console = quiet()
    results = compare.run(Comparison(base=tiny(training__steps=2), axes=axes), tmp_path / "grid", console=console, together=2)
    assert sum(run["finished"] for run in results["runs"]) == 6
    assert [line.count("step 2") for line in console.file.getvalue().splitlines() if "runs/" in line] == [1] * 4  # of 2 + 1 alone


@pytest.mark.slow
def test_what_the_memory_does_not_hold_at_once_is_trained_in_parts(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "device_memory", lambda _: 1)
    runs = [(tiny(**BASE | each), tmp_path / f"{number}") for number, each in enumerate(EACH)]
    console = quiet()
    assert all(summary["finished"] for summary in train_together(runs, console=console))
    assert "3 runs at once need" in console.file.getvalue()
    for (_, folder), by_itself in zip(runs, alone, strict=True):
        assert_close(numbers(folder), numbers(by_itself))


def test_runs_that_differ_in_more_than_hyperparameters_are_refused(tmp_path):
    experiments = [tiny(), tiny(model__d_model=8)]
    assert not fit_together(experiments) and fit_together([tiny(), tiny(training__seed=1)])
    with pytest.raises(ValueError, match="do not fit together"):
        train_together([(each, tmp_path / f"{number}") for number, each in enumerate(experiments)], console=quiet())
    assert not any(tmp_path.iterdir())
