"""Figures show the numbers they are given; labels at the ends of curves keep their distance."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from seqzoo.compare.colours import FAMILIES, colour, styles
from seqzoo.compare.figures import (
    SizePoint,
    _end_labels,
    by_state,
    decoding,
    eval_sets,
    learning_curves,
    move_apart,
    places,
    powers_of_two,
)
from seqzoo.compare.summary import Range, Row
from seqzoo.training.objective import ACCURACY


@pytest.mark.parametrize(
    "values", [[0.1, 0.5, 0.9], [0.97, 0.98, 0.99, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.51, 1.0], [0.3] * 7, [0.2]]
)
def test_end_labels_keep_their_distance_order_and_bounds(values):
    moved = move_apart(values, gap=0.06, low=0.0, high=1.0)
    assert np.all(np.diff(moved) >= 0.06 - 1e-9) and min(moved) >= -1e-9 and max(moved) <= 1 + 1e-9
    if np.all(np.diff(values) >= 0.06):
        assert moved == pytest.approx(values)


def test_evaluation_sets_are_placed_at_the_setting_in_which_they_differ():
    assert places({"a": {"length": 64, "pairs": 4}, "b": {"length": 64, "pairs": 8}}) == ("pairs", {"a": 4, "b": 8})
    assert places({"a": {"length": 64, "pairs": 4}, "b": {"length": 128, "pairs": 4}}) == ("length", {"a": 64, "b": 128})
    assert places({"a": {}, "b": {}}) == (None, {"a": 0, "b": 1})


SETTINGS = {"pairs=2": {"pairs": 2}, "pairs=8": {"pairs": 8}}


def test_a_row_that_is_still_learning_has_hollow_markers_and_says_so_in_its_label():
    ranges = {name: Range(0.5, 0.5, 0.5) for name in SETTINGS}
    row = Row("gla", 1e-3, {1e-3: 0.5}, Range(0.5, 0.5, 0.5), ranges, 10, 20, 1e5, ("0-gla",))
    lines = [{"step": step, "kind": kind, "accuracy": 0.5, "loss": 1.0} for step in (1, 2) for kind in ("train", "eval")]
    for learning, label, fill in ((False, "gla", colour("gla")), (True, "gla (still learning)", "white")):
        rows = [row._replace(still_learning=learning)]
        sets = eval_sets(rows, SETTINGS, ACCURACY, dict.fromkeys(ranges), "test accuracy").axes[0]
        curve = learning_curves(rows, {"0-gla": lines}, ACCURACY, dict.fromkeys(ranges)).axes[1]
        for axes in (sets, curve):
            assert axes.get_lines()[-1].get_markerfacecolor() == fill and label in [text.get_text() for text in axes.texts]


def test_accuracy_by_evaluation_set_is_drawn_at_the_numbers_of_the_table_with_the_chance_line():
    ranges = {"pairs=2": Range(0.9, 0.8, 1.0), "pairs=8": Range(0.5, 0.4, 0.6)}
    row = Row("gla", 1e-3, {1e-3: 0.7}, Range(0.7, 0.6, 0.8), ranges, 10, 20, 1e5, ("0-gla",))
    figure = eval_sets([row], SETTINGS, ACCURACY, dict.fromkeys(ranges, 1 / 128), "test accuracy")
    (axes,) = figure.axes
    assert axes.get_title() == "Test accuracy after training"
    curve, chance = axes.get_lines()
    assert curve.get_xdata().tolist() == [2, 8] and curve.get_ydata().tolist() == [0.9, 0.5] and curve.get_color() == colour("gla")
    assert set(np.asarray(chance.get_ydata())) == {1 / 128} and chance.get_linestyle() != "-"


def test_the_labels_of_many_curves_have_a_line_each():
    ranges = {name: Range(1.0, 1.0, 1.0) for name in ("pairs=2", "pairs=8")}
    names = [f"mixer{i}" for i in range(30)]
    rows = [Row(name, 1e-3, {1e-3: 1.0}, Range(1.0, 1.0, 1.0), ranges, 10, 20, 1e5, (name,)) for name in names]
    figure = eval_sets(rows, SETTINGS, ACCURACY, dict.fromkeys(ranges, 1 / 128), "test accuracy")
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if text.get_text() in names]
    boxes = sorted((Text.get_window_extent(label) for label in labels), key=lambda box: box.y0)  # without the hairlines
    assert len(boxes) == 30
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(boxes))


def test_a_picture_of_many_mixers_over_their_sizes_has_a_curve_and_a_label_for_each():
    names = [name for members in FAMILIES.values() for name in members][:25]
    result = lambda name, size: SizePoint(size, Range(0.9, 0.8, 1.0), still_learning=name == "mamba" and size == 4096)
    series = {name: [result(name, size) for size in (32768, 1024, 4096, 16640)] for name in names}
    figure = by_state(series, ACCURACY, 1 / 128, "test accuracy on 16 pairs")
    figure.canvas.draw()
    (axes,) = figure.axes
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 4 and line.get_linestyle() != "None"]
    assert [list(curve.get_xdata()) for curve in curves] == [[1024, 4096, 16640, 32768]] * 25
    assert [curve.get_color() for curve in curves] == [colour(name) for name in names]
    hollow = [line.get_xdata()[0] for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert (
        hollow == [4096]
        and "hollow: still learning" in axes.get_xlabel()
        and axes.get_title().startswith("Test accuracy on 16 pairs")
    )
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1 KiB", "2 KiB", "4 KiB", "8 KiB", "16 KiB", "32 KiB"]
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts if text.get_text() in names), key=lambda box: box.y0)
    assert len(boxes) == 25 and all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(boxes))
    assert any("chance 0.008" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [([4096], [4096, 8192]), ([1000, 8600], [1024, 2048, 4096, 8192]), ([1, 2**32], [2**each for each in range(0, 33, 4)])],
)
def test_an_axis_of_bytes_has_powers_of_two_around_all_sizes(sizes, ticks):
    assert powers_of_two(sizes) == ticks


def test_the_label_of_a_nearly_flat_curve_stays_beside_the_axes():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.set_ylim(5.880, 5.895)
    _end_labels(axes, {"gla": (1.0, 5.89), "softmax": (1.0, 5.8801)}, styles(["gla", "softmax"]))
    assert [0 < label.xyann[1] < 1 for label in axes.texts] == [True, True]


def test_importing_compare_does_not_import_matplotlib():
    code = "import sys, seqzoo.compare; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=120).returncode == 0


def test_decoding_speed_is_drawn_over_the_context_by_label():
    rates = {"softmax": {256: 1000.0, 1024: 100.0}, "gla": {1024: 5000.0, 256: 5000.0}}
    (axes,) = decoding(rates).axes
    lines = [(list(line.get_xdata()), [round(10**y) for y in line.get_ydata()]) for line in axes.get_lines()]
    assert lines == [([256, 1024], [1000, 100]), ([256, 1024], [5000, 5000])]
    assert [text.get_text() for text in axes.texts] == ["softmax", "gla"]
