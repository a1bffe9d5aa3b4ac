"""Plateaus: which curves still gain, and runs that end at one."""

import pytest

from helpers.tiny import quiet, stopping, tiny
from seqzoo import training
from seqzoo.training.plateau import Gains
from seqzoo.training.run.metrics import Metrics


def after(*evaluations, min_gain=0.01, patience=3):
    gains = Gains(min_gain, patience)
    for accuracy, loss in evaluations:
        gains.add(accuracy, loss)
    return gains


def test_a_flat_curve_is_a_plateau_after_so_many_evaluations_as_stated():
    assert not after(*[(0.25, 1.4)] * 3).on_plateau
    flat = after(*[(0.25, 1.4)] * 4)
    assert flat.on_plateau and not flat.still_learning


def test_a_loss_that_falls_slowly_at_guessing_level_is_a_gain_as_often_as_it_has_fallen_by_the_fraction():
    falling = [(0.25, 1.4 * 0.996**i) for i in range(30)]  # by 1 % in three evaluations
    assert after(*falling).still_learning and not any(after(*falling[:n]).on_plateau for n in range(1, 31))
    assert after(*[(0.25, 1.4 * 0.999**i) for i in range(5)]).on_plateau


def test_a_rising_accuracy_is_a_gain_while_the_loss_rises():
    assert after(*[(0.1 + 0.005 * i, 1.0 + i) for i in range(20)]).still_learning


def test_noise_below_the_size_of_a_gain_is_no_gain():
    assert after(*[(0.25 + 0.009 * (i % 2), 1.4 - 0.013 * (i % 2)) for i in range(5)]).on_plateau


def test_the_references_never_get_worse():
    """Else a curve that goes up and down would gain for ever."""
    assert after(*[(0.25 + 0.1 * (i % 2), 1.4 + 0.5 * (i % 2)) for i in range(5)]).on_plateau


def test_above_one_minus_the_gain_there_is_nothing_left_to_learn_though_the_loss_falls():
    assert not after((0.5, 1.0), (0.995, 0.02), (0.995, 0.01)).still_learning
    assert after((0.5, 1.0), (0.985, 0.02), (0.985, 0.01)).still_learning


@pytest.mark.parametrize(
    ("evaluations", "flat", "learning"), [(1, 0, True), (2, 1, True), (3, 2, False), (12, 2, True), (12, 3, False)]
)
def test_without_a_patience_it_is_a_quarter_of_the_evaluations_and_at_least_two(evaluations, flat, learning):
    rising = [(0.02 * i, 1.4) for i in range(evaluations - flat)]
    assert after(*rising, *rising[-1:] * flat, patience=None).still_learning == learning


def test_a_resumed_run_decides_by_the_evaluations_before_it_as_one_that_was_not_stopped(tmp_path):
    setup = training.prepare(PLATEAU)
    for step in range(2, 10, 2):
        resumed = Metrics(setup, tmp_path, step - 2)  # a process for each evaluation, which drops what comes later
        resumed.evaluation(step + 2, {name: {"accuracy": 1.0, "loss": 0.0} for name in resumed.eval_sets})
        resumed = Metrics(setup, tmp_path, step - 2)
        resumed.evaluation(step, {name: {"accuracy": 0.5, "loss": 1.0} for name in resumed.eval_sets})
        assert resumed.ended(step) == Metrics(setup, tmp_path, step).ended(step) == (None if step < 6 else "plateau")
    assert resumed.ended(step + 1) is None, "only an evaluation decides"


PLATEAU = tiny(training__steps=60, training__eval_every=2, training__patience=2, training__min_gain=0.9)


@pytest.mark.slow
def test_a_run_ends_at_a_plateau_at_the_same_step_however_often_it_was_stopped(digest, numbers, tmp_path):
    console = quiet()
    summary = training.train(PLATEAU, tmp_path / "whole", console=console)
    assert (summary["ended"], summary["still_learning"], summary["step"], bool(summary["test"])) == ("plateau", False, 6, True)
    assert "plateau: no gain in training.patience=2 evaluations" in console.file.getvalue()
    parts, folder = stopping(PLATEAU, 3), tmp_path / "parts"
    assert training.train(parts, folder, console=quiet())["step"] == 3
    again = training.train(parts, folder, console=quiet())
    assert again["test"] == summary["test"] and again["ended"] == "plateau"
    (folder / "summary.json").unlink()  # as if it had been killed before it wrote that
    assert training.train(parts, folder, console=quiet())["step"] == 6
    assert digest(parts, folder) == digest(PLATEAU, tmp_path / "whole") and numbers(folder) == numbers(tmp_path / "whole")
