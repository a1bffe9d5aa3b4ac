"""The table of a comparison for the terminal, and the pieces of text that it shares with the report."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from seqzoo.compare.colours import colour
from seqzoo.compare.summary import STILL_LEARNING, Range, Row, Run, chance_levels, objective_of_runs, shown_in_words, summarise
from seqzoo.config.comparison import BUDGET, MATCHED, SHAPE

TEXT_WIDTH = 10  # at which a column of text still folds well, on a narrow terminal
GAP = 1  # between columns


def print_line(console: Console, text: str) -> None:
    """Prints a line without markup, highlighting or wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def new_table(title: str | Text) -> Table:
    """An empty table in the form of all tables here. Columns of numbers are right-aligned and `no_wrap`; texts fold."""
    title = Text(title) if isinstance(title, str) else title  # never markup
    return Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def print_table(console: Console, table: Table) -> None:
    """Prints a table so that no digit is cut.

    Into a pipe or a file at its natural width, because there is no terminal width. On a terminal that is too narrow for its columns
    of numbers, as a list: each row's first cell, and below it a line for every other cell.
    """
    if not console.is_terminal:
        before = console.width
        console.width = max(before, Measurement.get(console, console.options.update(width=10_000), table).maximum)
        try:
            console.print(table)
        finally:
            console.width = before
    elif _least_width(console, table) <= console.width:
        console.print(table)
    else:
        for line in _as_list(table):
            print_line(console, line)


def _least_width(console: Console, table: Table) -> int:
    """Width at which numbers are whole and texts fold at TEXT_WIDTH."""
    width = lambda cell: Measurement.get(console, console.options.update(width=10_000), cell).maximum
    widths = [max(map(width, [column.header, *column.cells])) for column in table.columns]
    fixed = [each if column.no_wrap else min(each, TEXT_WIDTH) for each, column in zip(widths, table.columns, strict=True)]
    return sum(fixed) + GAP * len(fixed)


def _as_list(table: Table) -> Iterator[str]:
    """The lines of a table as a list."""
    plain = lambda cell: cell.plain if isinstance(cell, Text) else str(cell)
    first, *others = table.columns
    if table.title:
        yield plain(table.title)
    names = [plain(column.header).replace("-\n", "").replace("\n/", "/").replace("\n", " ") for column in others]
    for title, *cells in zip(first.cells, *(column.cells for column in others), strict=True):
        yield plain(title)
        for name, cell in zip(names, cells, strict=True):
            if text := plain(cell).replace("\n", " "):
                yield f"  {name}: {text}"


def table(rows: Sequence[Row], runs: Sequence[Run], title: str) -> Table:
    """The rows for a terminal: accuracy or bits per byte in each evaluation set, and the chance level if there is one.

    The best is in bold, among rows that are not still learning: those have a hollow bullet and no rank. ± is half the distance
    from the lowest to the highest seed.
    """
    levels, objective = chance_levels(runs), objective_of_runs(runs)
    several = len({run.rate for run in runs}) > 1
    chosen, matched = chosen_axes(rows), any(MATCHED in row.point for row in rows)
    result = new_table(title)
    result.add_column("", overflow="fold")  # the only column that folds on a narrow terminal: no digit is cut
    for name in levels:
        result.add_column(Text(re.sub("[=,]", "\n", name)), justify="right", no_wrap=True)
    seeds, rates = ["seeds"] if seeds_differ(rows) else [], ["learning\nrate"] if several else []
    for name in seeds:
        result.add_column(name, justify="right", no_wrap=True)
    for name in chosen.values():
        result.add_column(name, overflow="fold")
    for name in (*rates, *(["matched"] if matched else []), "para-\nmeters", "state\nbytes", "tokens\n/s"):
        result.add_column(name, justify="right", no_wrap=True)
    ranked = [row for row in rows if not row.still_learning]
    medians = {name: [row.eval_sets[name].median for row in ranked if name in row.eval_sets] for name in levels}
    best = {name: max(found, key=objective.sort_key, default=None) for name, found in medians.items()}
    for row in rows:
        cells = [Text.assemble(("○ " if row.still_learning else "● ", colour(row.label)), row.title)]
        for name in levels:
            values = row.eval_sets.get(name)
            cells.append(_format_range(values, not row.still_learning and values.median == best[name]) if values else Text())
        cells += [Text(str(len(row.runs)))] if seeds else []
        cells += [Text(str(row.chosen.get(axis, ""))) for axis in chosen]
        cells += [*([f"{row.rate:g}"] if several else []), *([format_matched(row.point)] if matched else [])]
        result.add_row(*cells, *map(Text, format_costs(row)))
    if any(level is not None for level in levels.values()):
        result.add_section()
        result.add_row(Text("chance", "dim"), *(Text(format_chance(level), "dim") for level in levels.values()))
    return result


def caption(runs: Sequence[Run]) -> str:
    """The meaning of the numbers of a row: set and objective, seeds, learning rates; and which rows are not ranked."""
    rows = summarise(runs)
    rates = max((len(row.rates) for row in rows), default=1)
    seeds = max((len(row.runs) for row in rows), default=1)
    parts = [f"{shown_in_words(runs).capitalize()} after the last step"]
    if seeds > 1:
        count = "the seeds that have a result" if seeds_differ(rows) else f"{seeds} seeds"
        parts.append(f"median of {count} (lowest-highest, or ± half of that range)")
    if rates > 1:
        parts.append(f"at the best of {rates} learning rates on validation")
    if any(run.point.get(SHAPE) for run in runs):
        parts.append("with the best on validation of the settings that meet the budget")
    learning = f" Rows {STILL_LEARNING}: their curves rose when training ended, and they are not ranked."
    more = learning if any(row.still_learning for row in rows) else ""
    return f"{', '.join(parts)}. State bytes: decode memory per row.{more}"


def seeds_differ(rows: Sequence[Row]) -> bool:
    """True if rows have results of different numbers of seeds: tables then have a column of them."""
    return len({len(row.runs) for row in rows}) > 1


def _format_range(values: Range, best: bool) -> Text:
    median = Text(f"{values.median:.3f}", "bold" if best else "")
    return median if values.low == values.high else Text.assemble(median, (f"\n±{(values.high - values.low) / 2:.2f}", "dim"))


def format_chance(chance: float | None) -> str:
    if chance is None:
        return "-"
    return "varies" if math.isnan(chance) else f"{chance:.3f}"


def chosen_axes(rows: Sequence[Row]) -> dict[str, str]:
    """The axes of choice whose values a table shows beside the learning rate, with their titles."""
    axes = dict.fromkeys(axis for row in rows for axis in row.chosen)
    return {axis: "settings" if axis == SHAPE else axis.split(".")[-1].replace("_", " ") for axis in axes}


def format_matched(point: Mapping[str, Any]) -> str:
    """The measure of a point of a comparison with budgets, marked if no budget is met."""
    return f"{point[MATCHED]:,}" + ("" if BUDGET in point else " (not matched)")


def format_costs(row: Row) -> tuple[str, str, str]:
    speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    return f"{row.parameters:,}", f"{row.state_bytes:,}", speed


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
