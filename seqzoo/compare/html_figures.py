"""Figures of the page of a report, in Bokeh: the name of each curve lists its rows, by which the page hides it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, GlyphRenderer, HoverTool, Line, MultiLine, Scatter, Segment, Span
from bokeh.plotting import figure

from seqzoo.compare.colours import Style
from seqzoo.compare.figures import FAINT, bytes_in_words, places, points_of, powers_of_two
from seqzoo.compare.joined import Entry, Joined
from seqzoo.training.objective import ACCURACY

INK = "#1b1b1b"
POINTS = 40_000  # of all learning curves of one figure: the page stays below 5 MB
MOST, LEAST = 250, 12  # of one learning curve
MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle", "P": "plus", "h": "hex"}
OF_CURVE = [("", "@label"), ("spec", "@spec"), ("learning rate", "@rate"), ("seed", "@seed")]


def draw(joined: Joined, looks: Mapping[str, Style], eval_sets: Sequence[str | None]) -> dict[str, Any]:
    """The figures by title.

    Args:
      joined: what is drawn.
      looks: of each label and series.
      eval_sets: of the figure against state size, in the order of the page's choice; None is the mean over all.
    """
    title = joined.what.capitalize()
    drawn = {
        f"Validation {joined.objective.title} during training": _learning(joined, looks, "eval", joined.objective.name),
        "Training loss": _learning(joined, looks, "train", "loss"),
        f"{title} in each evaluation set": _eval_sets(joined, looks) if len(joined.settings) > 1 else None,
        f"{title} against state size": _sizes(joined, looks, eval_sets),
    }
    return {name: each for name, each in drawn.items() if each is not None}


def _figure(joined: Joined, x: str, **more: Any) -> Any:
    """An empty figure; of the whole range of an accuracy unless `more` has another."""
    more = ({"y_range": (-0.04, 1.04)} if joined.objective == ACCURACY else {}) | more
    plot = figure(height=380, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,save", x_axis_label=x, **more)
    plot.toolbar.logo = None  # which links to another site
    plot.toolbar.active_scroll = None
    plot.toolbar.autohide = True
    plot.outline_line_color = plot.xgrid.grid_line_color = None
    plot.ygrid.grid_line_color = "#e4e4e4"
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = "12px"
        axis.minor_tick_line_color = None
        axis.axis_line_color = axis.major_tick_line_color = FAINT
    return plot


def _add(plot: Any, source: ColumnDataSource, glyph: Any, name: str) -> GlyphRenderer:
    return plot.add_glyph(source, glyph, name=name, nonselection_glyph=None, muted_glyph=None)


def _learning(joined: Joined, looks: Mapping[str, Style], kind: str, metric: str) -> Any:
    """One curve per run: those of one row in one renderer."""
    most = max(LEAST, min(MOST, POINTS // max(1, len(joined.runs))))
    found = [[(points_of(member.lines, kind, metric, "step"), member) for member in entry.shown] for entry in joined.entries]
    values = sorted(value for runs in found for points, _ in runs for value in points.values())
    if not values:
        return None
    last = max(step for runs in found for points, _ in runs for step in points)
    top = {} if kind == "eval" else {"y_range": (0, 1.05 * values[int(0.995 * (len(values) - 1))])}  # without the few largest
    plot = _figure(joined, "step", x_range=(0, 1.02 * last), **top)
    renderers = []
    for number, (entry, runs) in enumerate(zip(joined.entries, found, strict=True)):
        drawn = [(_thinned(points, most), member) for points, member in runs if points]
        data = {
            "x": [list(points) for points, _ in drawn],
            "y": [[round(value, 4) for value in points.values()] for points, _ in drawn],
            "seed": [str(member.run.seed) for _, member in drawn],
        }
        width = 1.8 if len(drawn) == 1 else 1.1
        lines = MultiLine(
            xs="x", ys="y", line_color=looks[entry.label].colour, line_dash=_dash(looks[entry.label]), line_width=width
        )
        renderers.append(_add(plot, _source(entry, data), lines, str(number)))
        if kind == "eval":
            ends = {"x": [points[-1] for points in data["x"]], "y": [points[-1] for points in data["y"]]}
            fill = "white" if entry.still_learning else looks[entry.label].colour
            marker: Any = {
                "marker": MARKERS[looks[entry.label].marker],
                "line_color": looks[entry.label].colour,
                "fill_color": fill,
            }
            _add(plot, ColumnDataSource(ends), Scatter(x="x", y="y", size=7, **marker), str(number))
    if kind == "eval":
        _add_chance(plot, joined.chance())
    _add_hover(plot, renderers, [("step", "$snap_x{0,0}"), ("value", "$snap_y{0.0000}")])
    return plot


def _eval_sets(joined: Joined, looks: Mapping[str, Style]) -> Any:
    """The objective in each evaluation set, against the setting in which they differ: median, and a bar from lowest to highest."""
    name, place = places(joined.settings)
    order = sorted(place, key=lambda each: place[each])
    wide = name is not None and min(place.values()) > 0 and max(place.values()) >= 4 * min(place.values())
    x = {"pairs": "key-value pairs to remember", "length": "tokens", None: "evaluation set"}.get(name, name)
    plot = _figure(joined, str(x), x_axis_type="log" if wide else "linear")
    plot.xaxis.ticker = FixedTicker(ticks=sorted(set(place.values())))
    plot.xaxis.major_label_overrides = {place[each]: each if name is None else f"{place[each]:g}" for each in order}
    renderers = []
    for number, entry in enumerate(joined.entries):
        ranges = {each: entry.row.eval_sets[each] for each in order if each in entry.row.eval_sets} if entry.row else {}
        data = {
            "x": [place[each] for each in ranges],
            "y0": [values.median for values in ranges.values()],
            "low0": [values.low for values in ranges.values()],
            "high0": [values.high for values in ranges.values()],
            "seed": [_seeds(entry)] * len(ranges),
        }
        if ranges:
            fill = "white" if entry.still_learning else looks[entry.label].colour
            renderers.append(_add_marked(plot, _source(entry, data), looks[entry.label], str(number), fill))
    _add_chance(plot, joined.chance() if len(set(joined.levels.values())) == 1 else None)
    _add_hover(plot, renderers, [("median", "@y0{0.0000}"), ("seeds from, to", "@low0{0.0000}, @high0{0.0000}")])
    return plot if renderers else None


def _sizes(joined: Joined, looks: Mapping[str, Style], eval_sets: Sequence[str | None]) -> Any:
    """The objective against the bytes of state, a curve per series.

    The columns y0, y1 ... are those of the evaluation sets; the page chooses one.
    """
    numbers = {entry.label: number for number, entry in enumerate(joined.entries)}
    series = joined.sizes()
    if not series:
        return None
    ticks = powers_of_two([point.state_bytes for points in series.values() for _, point in points])
    plot = _figure(joined, "bytes of state per row", x_axis_type="log", x_range=(ticks[0] * 0.9, ticks[-1] * 1.1))
    plot.xaxis.ticker = FixedTicker(ticks=ticks)
    plot.xaxis.major_label_overrides = {each: bytes_in_words(each) for each in ticks}
    renderers = []
    for name, points in series.items():
        entries = [entry for entry, _ in sorted(points, key=lambda pair: pair[1].state_bytes)]
        data: dict[str, Any] = {
            "x": [entry.row.state_bytes for entry in entries if entry.row],
            "seed": [_seeds(entry) for entry in entries],
            "fill": ["white" if entry.still_learning else looks[name].colour for entry in entries],
        }
        for place, eval_set in enumerate(eval_sets):
            ranges = [entry.value(eval_set) for entry in entries]
            for part in ("median", "low", "high"):
                column = f"{'y' if part == 'median' else part}{place}"
                data[column] = [float("nan") if values is None else getattr(values, part) for values in ranges]
        owners = " ".join(str(numbers[entry.label]) for entry in entries)
        renderers.append(_add_marked(plot, _source(entries, data), looks[name], owners, "fill"))
    for place, eval_set in enumerate(eval_sets):
        _add_chance(plot, joined.chance(eval_set), [str(place)], place == 0)
    _add_hover(plot, renderers, [("bytes of state", "@x{0,0}"), ("median", "$snap_y{0.0000}")])
    return plot


def _add_marked(plot: Any, source: ColumnDataSource, look: Style, name: str, fill: str) -> GlyphRenderer:
    """Line, bars and markers of the columns x, y0, low0 and high0; returns what hovering finds."""
    _add(plot, source, Line(x="x", y="y0", line_color=look.colour, line_dash=_dash(look), line_width=1.8), name)
    _add(plot, source, Segment(x0="x", y0="low0", x1="x", y1="high0", line_color=look.colour), name)
    marker = Scatter(x="x", y="y0", marker=MARKERS[look.marker], line_color=look.colour, fill_color=fill, size=8)
    return _add(plot, source, marker, name)


def _add_chance(plot: Any, level: float | None, tags: Sequence[str] = (), visible: bool = True) -> None:
    if level is not None:
        look = {"line_color": FAINT, "line_dash": [4, 3]}
        plot.add_layout(Span(location=level, dimension="width", tags=list(tags), visible=visible, **look))


def _add_hover(plot: Any, renderers: Sequence[GlyphRenderer], numbers: Sequence[tuple[str, str]]) -> None:
    plot.add_tools(HoverTool(tooltips=[*OF_CURVE, *numbers], renderers=list(renderers), line_policy="nearest"))


def _source(entries: Entry | Sequence[Entry], data: Mapping[str, list[Any]]) -> ColumnDataSource:
    """Data with what hovering shows of an entry, or of the entry of each point."""
    count = len(data["x"])
    owners = [entries] * count if isinstance(entries, Entry) else entries
    texts = {
        "label": [entry.label for entry in owners],
        "spec": [entry.spec for entry in owners],
        "rate": [f"{entry.shown[0].run.rate:g}" for entry in owners],
    }
    return ColumnDataSource({**texts, **data})


def _seeds(entry: Entry) -> str:
    return ", ".join(str(member.run.seed) for member in entry.shown)


def _dash(look: Style) -> Any:
    """The dashes in pixels."""
    return [max(1, round(2 * each)) for each in look.dash] or "solid"


def _thinned(points: dict[float, float], most: int) -> dict[float, float]:
    """At most so many points, evenly spaced, with the first and the last."""
    if len(points) <= most:
        return points
    kept = {round(each * (len(points) - 1) / (most - 1)) for each in range(most)}
    return dict(pair for place, pair in enumerate(points.items()) if place in kept)
