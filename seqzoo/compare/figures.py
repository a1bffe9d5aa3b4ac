"""Figures of a comparison. Matplotlib is imported when one is drawn, with its Agg canvas only: no display, no global state."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from seqzoo.compare.colours import Style, styles
from seqzoo.compare.summary import Range, Row
from seqzoo.training.objective import ACCURACY, Objective

INK, FAINT = "#333333", "#8a8a8a"
LABEL_INCHES = 0.21  # of one label at the end of a curve
LETTER_INCHES = 0.085  # of a label, on average
SAMPLE_INCHES = 0.32  # of the piece of line before a label, in the style of its curve


def learning_curves(
    rows: Sequence[Row], lines: Mapping[str, Sequence[dict[str, Any]]], objective: Objective, chances: Mapping[str, float | None]
):
    """Training loss and mean objective on validation against steps: median over seeds, and a band from lowest to highest.

    The curve of a row that is still learning ends in a hollow marker.
    Args:
      rows: one curve each.
      lines: the metrics.jsonl of every run that `rows` names.
      objective: accuracy or bits per byte.
      chances: chance level of each evaluation set.
    Returns:
      A matplotlib figure.
    """
    figure, (left, right) = _figure(2, [row.title for row in rows])
    looks = styles(row.title for row in rows)
    ends = {}
    for row in rows:
        runs = [lines[name] for name in row.runs]
        look = looks[row.title]
        _curve(left, [points_of(run, "train", "loss", "step") for run in runs], look)
        end = _curve(right, [points_of(run, "eval", objective.name, "step") for run in runs], look, marked=True)
        if end:
            ends[row.title] = end
            if row.still_learning:
                right.plot(*end, color=look.colour, marker=look.marker, markersize=7, markerfacecolor="white", clip_on=False)
    left.set(xlabel="step", xlim=(0, None), ylim=(0, None))
    left.set_title("Training loss", fontsize=11.5, color=INK)
    right.set(xlabel="step", xlim=(0, None), **_limits(objective))
    right.set_title(f"Validation {objective.title}, mean over evaluation sets", fontsize=11.5, color=INK)
    _chance(right, _level(chances))
    _end_labels(right, ends, looks)
    return figure


def curves(lines: Mapping[str, Sequence[dict[str, Any]]], metric: str, x: str):
    """One curve per run: a panel for the metric in training, and one for its mean over evaluation sets in evaluation.

    Args:
      lines: the metrics.jsonl of every run, by its label.
      metric: a name in metrics.jsonl.
      x: a name in metrics.jsonl, for the x axis.
    Returns:
      A matplotlib figure.
    """
    names = {"train": "training", "eval": "evaluation, mean over evaluation sets"}
    found = {kind: {label: points_of(run, kind, metric, x) for label, run in lines.items()} for kind in names}
    found = {kind: {label: run for label, run in runs.items() if run} for kind, runs in found.items() if any(runs.values())}
    figure, panels = _figure(len(found), list(lines))
    looks = styles(lines)
    for axes, (kind, runs) in zip(panels, found.items(), strict=True):
        ends = {label: _curve(axes, [run], looks[label], marked=kind == "eval") for label, run in runs.items()}
        axes.set(xlabel={"step": "step"}.get(x, f"{x} of training"), xlim=(0, None))
        axes.set_title(f"{metric}, {names[kind]}", fontsize=11.5, color=INK)
        labelled_later = found["eval"] if kind == "train" and len(found) == 2 else ()
        _end_labels(axes, {label: end for label, end in ends.items() if label not in labelled_later}, looks)
    return figure


def by_position(evaluations: Mapping[str, dict[str, Any]]):
    """The loss against the position in the row, one curve per evaluation.

    Args:
      evaluations: lines of metrics.jsonl by label, with "position_loss": {"from": [first position of each octave], "loss":
        [mean loss in it, None without scored tokens]}.
    Returns:
      A matplotlib figure.
    """
    figure, (axes,) = _figure(1, list(evaluations))
    looks = styles(evaluations)
    ends = {}
    for label, line in evaluations.items():
        begin, losses = line["position_loss"]["from"], line["position_loss"]["loss"]
        end = [*begin[1:], max(1, 2 * begin[-1])]
        scored = {x: loss for x, loss in zip(end, losses, strict=True) if loss is not None}
        ends[label] = _curve(axes, [scored], looks[label], marked=True)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the row, octaves up to")
    axes.set_title("loss by position, last evaluation", fontsize=11.5, color=INK)
    _end_labels(axes, ends, looks)
    return figure


def eval_sets(
    rows: Sequence[Row],
    settings: Mapping[str, Mapping[str, Any]],
    objective: Objective,
    chances: Mapping[str, float | None],
    title: str,
):
    """The objective in each evaluation set, against the number of pairs, or another number in which the evaluation sets differ.

    The markers of a row that is still learning are hollow.
    Args:
      rows: one curve each.
      settings: the settings of each evaluation set.
      objective: accuracy or bits per byte.
      chances: chance level of each evaluation set.
      title: the numbers of the rows in words, such as "test accuracy".
    Returns:
      A matplotlib figure.
    """
    figure, (axes,) = _figure(1, [row.title for row in rows])
    looks = styles(row.title for row in rows)
    name, place_of = places(settings)
    order = sorted(place_of, key=lambda name: place_of[name])
    ends = {}
    for row in rows:
        here = [each for each in order if each in row.eval_sets]
        style = looks[row.title]
        x = [place_of[each] for each in here]
        axes.fill_between(
            x,
            [row.eval_sets[e].low for e in here],
            [row.eval_sets[e].high for e in here],
            color=style.colour,
            alpha=0.14,
            linewidth=0,
        )
        y = [row.eval_sets[e].median for e in here]
        look = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
        fill = {"markerfacecolor": "white"} if row.still_learning else {}
        axes.plot(x, y, markersize=5, linewidth=1.8, clip_on=False, **look, **fill)
        ends[row.title] = (x[-1], y[-1])
    if name is None:
        axes.set_xticks(list(place_of.values()), list(place_of), rotation=20, ha="right")
    else:
        if min(place_of.values()) > 0 and max(place_of.values()) >= 4 * min(place_of.values()):
            axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(place_of.values())), [f"{place:g}" for place in sorted(set(place_of.values()))])
        axes.minorticks_off()
        axes.set_xlabel({"pairs": "key-value pairs to remember", "length": "tokens"}.get(name, name))
    axes.set(**_limits(objective))
    axes.set_title(f"{title.capitalize()} after training", fontsize=11.5, color=INK)
    _chance(axes, _level(chances) if len(set(chances.values())) == 1 else math.nan)
    _end_labels(axes, ends, looks)
    return figure


class SizePoint(NamedTuple):
    """A result at one state size."""

    state_bytes: int
    value: Range
    still_learning: bool = False


def by_state(series: Mapping[str, Sequence[SizePoint]], objective: Objective, chance: float | None, title: str):
    """The objective against the bytes of state, on a logarithmic axis: one curve per mixer over its sizes.

    A hollow marker is a result that was still rising when its training ended.
    Args:
      series: the points of each curve, by label.
      objective: accuracy or bits per byte.
      chance: its chance level; None: no line.
      title: the numbers in words, such as "test accuracy on 16 pairs".
    Returns:
      A matplotlib figure.
    """
    figure, (axes,) = _figure(1, list(series))
    axes.set_xscale("log", base=2)
    ends = {}
    for label, style in styles(series).items():
        points = sorted(series[label], key=lambda point: point.state_bytes)
        x, y = [point.state_bytes for point in points], [point.value.median for point in points]
        spread = [
            [point.value.median - point.value.low for point in points],
            [point.value.high - point.value.median for point in points],
        ]
        look = {"color": style.colour, "clip_on": False}
        axes.plot(x, y, linestyle=style.line, linewidth=1.6, **look)
        axes.errorbar(x, y, spread, linestyle="", elinewidth=1, **look)
        for point in points:
            fill = {"markerfacecolor": "white"} if point.still_learning else {}
            axes.plot([point.state_bytes], [point.value.median], marker=style.marker, markersize=5.5, **look, **fill)
        ends[label] = (x[-1], y[-1])
    sizes = [point.state_bytes for points in series.values() for point in points]
    ticks = powers_of_two(sizes)
    axes.set_xticks(ticks, [bytes_in_words(each) for each in ticks])
    axes.minorticks_off()
    hollow = any(point.still_learning for points in series.values() for point in points)
    axes.set(xlim=(ticks[0] * 0.9, ticks[-1] * 1.1), **_limits(objective))
    axes.set_xlabel(f"bytes of state per row{'; hollow: still learning' if hollow else ''}")
    axes.set_title(f"{title[:1].upper()}{title[1:]} against state size", fontsize=11.5, color=INK)
    _chance(axes, math.nan if chance is None else chance)
    _end_labels(axes, ends, styles(series))
    return figure


def powers_of_two(sizes: Sequence[int]) -> list[int]:
    """Powers of two for an axis from the smallest size to the largest, to a twentieth; nine at most."""
    low = math.floor(math.log2(max(1, 1.05 * min(sizes))))
    high = max(low + 1, math.ceil(math.log2(max(1, max(sizes) / 1.05))))
    stride = math.ceil((high - low) / 8)
    return [2 ** (low + place * stride) for place in range(math.ceil((high - low) / stride) + 1)]


def bytes_in_words(count: int) -> str:
    """A power of two in binary units: 4096 is "4 KiB"."""
    units = ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB"))
    size, unit = max(each for each in units if each[0] <= max(1, count))
    return f"{count / size:g} {unit}"


def decoding(rates: Mapping[str, Mapping[int, float]]):
    """Tokens per second against the length of the context, both on logarithmic axes.

    Args:
      rates: {label: {tokens of context: tokens per second}}.
    Returns:
      A matplotlib figure.
    """
    figure, (axes,) = _figure(1, list(rates))
    ends = {}
    for label, style in styles(rates).items():
        x = sorted(rates[label])
        y = [math.log10(rates[label][each]) for each in x]
        axes.plot(x, y, color=style.colour, linestyle=style.line, marker=style.marker, markersize=3.5, linewidth=1.4, clip_on=False)
        ends[label] = (x[-1], y[-1])
    contexts = sorted({each for rate in rates.values() for each in rate})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{each:,}" for each in contexts])
    axes.minorticks_off()
    low, high = (round_to(limit) for round_to, limit in zip((math.floor, math.ceil), axes.get_ylim(), strict=True))
    axes.set_yticks(range(low, high + 1), [f"{10.0**each:,g}" for each in range(low, high + 1)])
    axes.set(xlabel="tokens of context", ylim=(low, high))
    axes.set_title("Tokens decoded per second", fontsize=11.5, color=INK)
    _end_labels(axes, ends, styles(rates))
    return figure


def save(figure, path: Path) -> None:
    """Writes a figure in the format that the path's suffix names, under a temporary name, and renames it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format=path.suffix[1:], dpi=160)
    temporary.replace(path)


def _figure(panels: int, labels: Sequence[str]) -> tuple[Any, Any]:
    """A figure and its panels, with space for the labels at the right ends of curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(2.2, LETTER_INCHES * max(map(len, labels), default=0))
    height = max(4.2, LABEL_INCHES * len(labels) + 1.0)
    figure: Any = Figure(figsize=(4.4 * panels + width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=INK, labelsize=9.5, color=FAINT)
        axes.xaxis.label.set(color=INK, fontsize=10.5)
        axes.title.set(color=INK)
        axes.titlesize = 11
        axes.grid(axis="y", color="#ececec", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, all_axes


def points_of(lines: Sequence[dict[str, Any]], kind: str, metric: str, x: str) -> dict[float, float]:
    """{x: metric}; the mean over the lines of one step, which are the evaluation sets of an evaluation."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == kind and line.get(metric) is not None:
            by_step.setdefault(line["step"], []).append(line)
    return {here[0][x]: fmean(line[metric] for line in here) for here in by_step.values()}


def _limits(objective: Objective) -> dict[str, tuple[float, float]]:
    """Axis limits: the whole range plus margins for accuracy, automatic otherwise."""
    return {"ylim": (-0.06, 1.03)} if objective == ACCURACY else {}


def _curve(axes, runs: Sequence[Mapping[float, float]], style: Style, marked: bool = False) -> tuple[float, float] | None:
    """Draws median and band at the steps that all runs have; returns the end of the curve."""
    steps = sorted(set.intersection(*map(set, runs)))
    if not steps:
        return None
    values = [[run[step] for run in runs] for step in steps]
    middle = [median(each) for each in values]
    marker = {"marker": style.marker, "markersize": 4} if marked and len(steps) <= 30 else {}
    axes.plot(steps, middle, color=style.colour, linestyle=style.line, linewidth=1.6, clip_on=not marked, **marker)
    if len(runs) > 1:
        axes.fill_between(steps, [min(e) for e in values], [max(e) for e in values], color=style.colour, alpha=0.14, linewidth=0)
    return steps[-1], middle[-1]


def _level(chances: Mapping[str, float | None]) -> float:
    """The mean chance level; NaN if an evaluation set has none."""
    return fmean(math.nan if level is None else level for level in chances.values()) if chances else math.nan


def _chance(axes, level: float) -> None:
    if math.isnan(level):
        return
    axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
    place = axes.get_yaxis_transform()
    axes.text(0.99, level - 0.01, f"chance {level:.3f}", transform=place, color=FAINT, fontsize=9, va="top", ha="right")


def _end_labels(axes, ends: Mapping[str, tuple[float, float] | None], looks: Mapping[str, Style]) -> None:
    """Writes each label at the right end of its curve, after a piece of line in its style; overlapping labels are moved apart."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import ConnectionPatch

    drawn = {label: end for label, end in ends.items() if end}
    order = sorted(drawn, key=lambda label: drawn[label][1])
    low, high = axes.get_ylim()
    span = high - low
    gap = LABEL_INCHES / (axes.figure.get_size_inches()[1] - 0.8) * span
    heights = move_apart([drawn[label][1] for label in order], gap=gap, low=low + 0.04 * span, high=high - 0.02 * span)
    sample = SAMPLE_INCHES / (axes.figure.get_size_inches()[0] / len(axes.figure.axes))
    for label, height in zip(order, heights, strict=True):
        look = looks[label]
        key = Line2D([1.05, 1.05 + sample / 2, 1.04 + sample], [(height - low) / span] * 3, transform=axes.transAxes)
        key.set(color=look.colour, linestyle=look.line, marker=look.marker, markersize=4.5, markevery=[1])
        place = (1.045, (height - low) / span)
        thin = ConnectionPatch(drawn[label], place, axes.transData, axes.transAxes, color=look.colour, linewidth=0.7, alpha=0.55)
        axes.figure.add_artist(key)
        axes.figure.add_artist(thin)
        axes.annotate(
            label,
            xy=drawn[label],
            xytext=(1.055 + sample, (height - low) / span),
            textcoords="axes fraction",
            color=INK,
            fontsize=10,
            va="center",
            annotation_clip=False,
            parse_math=False,  # a label may hold a dollar sign
        )


def move_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves ascending values as little as possible until they are `gap` apart, inside [low, high] if they fit.

    Values that collide form a block around their mean; blocks that then collide merge (pool adjacent violators).
    """
    blocks: list[list[float]] = []  # [sum of values minus their offsets in the block, count]
    centre = lambda block: min(max(block[0] / block[1], low), max(high - (block[1] - 1) * gap, low))
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and centre(blocks[-1]) < centre(blocks[-2]) + blocks[-2][1] * gap:
            total, count = blocks.pop()
            blocks[-1][0] += total - count * blocks[-1][1] * gap
            blocks[-1][1] += count
    return [centre(block) + place * gap for block in blocks for place in range(int(block[1]))]


def places(settings: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, dict[str, float]]:
    """x coordinate of each evaluation set: the first setting that differs between all evaluation sets ("pairs" first), else its
    index."""
    names = dict.fromkeys(("pairs", *(key for each in settings.values() for key in each)))
    for name in names:
        values = [each.get(name) for each in settings.values()]
        if all(isinstance(value, int | float) for value in values) and len(set(values)) == len(values):
            return name, {slice_name: each[name] for slice_name, each in settings.items()}
    return None, {name: place for place, name in enumerate(settings)}
