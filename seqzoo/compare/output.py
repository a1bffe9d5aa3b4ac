"""What a comparison leaves behind: results.json, results.csv, report.md, pictures, and a table on the terminal."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from seqzoo import config
from seqzoo.compare.colours import colour
from seqzoo.compare.summary import RATE, SEED, Row, Run, Spread, chances, objective_of_runs, summarise

REPORT = "report.md"
CURVES = "learning_curves.png"
SLICES = "slices.png"


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def whole(console: Console, table: Table) -> None:
    """Prints a table. A pipe or a file has no width to keep to: there it is as wide as it would be."""
    if not console.is_terminal:
        natural = Measurement.get(console, console.options.update(width=10_000), table).maximum
        console = Console(file=console.file, quiet=console.quiet, width=max(natural, console.width))
    console.print(table)


def write_numbers(folder: Path, comparison: config.Comparison, runs: Sequence[Run]) -> dict[str, Any]:
    """Writes results.json, results.csv and report.md, each whole or not at all. Returns what is in results.json."""
    from seqzoo.data.atomic_io import write_json, write_text
    from seqzoo.training import environment

    rows, levels = summarise(runs), chances(runs)
    results = {
        "name": comparison.name,
        "environment": environment(),
        "config": comparison.model_dump(mode="json"),
        "objective": objective_of_runs(runs).name,
        "chance": {name: None if level is None or math.isnan(level) else level for name, level in levels.items()},
        "rows": [_plain(row) for row in rows],
        "runs": [
            {**_plain(run), "finished": run.finished, "config": experiment.model_dump(mode="json")}
            for run, (_, experiment) in zip(runs, comparison.experiments(), strict=True)
        ],
    }
    write_json(folder / "results.json", results)
    write_text(folder / "results.csv", as_csv(runs))
    write_text(folder / REPORT, report(comparison, runs, rows, levels, results["environment"]))
    return results


def write_pictures(folder: Path, runs: Sequence[Run]) -> None:
    """Draws the pictures, of the runs at each label's best learning rate."""
    from seqzoo.compare import pictures
    from seqzoo.training import metrics

    rows, objective, levels = summarise(runs), objective_of_runs(runs), chances(runs)
    if not rows:
        return
    lines = {name: metrics.read(folder / "runs" / name / "metrics.jsonl") for row in rows for name in row.runs}
    pictures.save(pictures.learning_curves(rows, lines, objective, levels), folder / CURVES)
    settings = {name: result["settings"] for run in runs if run.finished for name, result in run.summary["final"].items()}
    if len(settings) > 1:
        pictures.save(pictures.slices(rows, settings, objective, levels), folder / SLICES)


def as_csv(runs: Sequence[Run]) -> str:
    """One line per finished run and slice."""
    objective = objective_of_runs(runs)
    axes = list(dict.fromkeys(path for run in runs for path in run.point))
    lines = [
        {
            **{"run": run.name, "label": run.label, "learning_rate": run.rate, "seed": run.seed},
            **{path: run.point[path] for path in axes if path not in (RATE, SEED)},
            **{"slice": name, objective.name: result[objective.name], "loss": result["loss"], "chance": result["chance"]},
            **{f"slice.{key}": value for key, value in result["settings"].items()},
            f"best_{objective.name}": run.summary["best"].get(name, result)[objective.name],
            **{key: run.summary[key] for key in ("parameters", "state_bytes", "tokens_per_second", "step")},
        }
        for run in runs
        if run.finished
        for name, result in run.summary["final"].items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def table(rows: Sequence[Row], runs: Sequence[Run], title: str) -> Table:
    """The rows for a terminal: accuracy or bits per byte in each slice, the best in bold, and the chance level where there is one;
    ± is half the way from the lowest to the highest seed."""
    levels, objective = chances(runs), objective_of_runs(runs)
    several = len({run.rate for run in runs}) > 1
    result = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    result.add_column("", overflow="fold")  # the only one that gives way on a narrow terminal: no digit is cut
    for name in levels:
        result.add_column(Text(re.sub("[=,]", "\n", name)), justify="right", no_wrap=True)
    for name in (*(["learning\nrate"] if several else []), "para-\nmeters", "state\nbytes", "tokens\n/s"):
        result.add_column(name, justify="right", no_wrap=True)
    medians = {name: [row.slices[name].median for row in rows if name in row.slices] for name in levels}
    best = {name: max(found, key=objective.sort_key, default=None) for name, found in medians.items()}
    for row in rows:
        cells = [Text.assemble(("● ", colour(row.label)), row.label)]
        for name in levels:
            spread = row.slices.get(name)
            cells.append(_cell(spread, spread.median == best[name]) if spread else "")
        result.add_row(*cells, *([f"{row.rate:g}"] if several else []), *map(Text, _costs(row)))
    if any(level is not None for level in levels.values()):
        result.add_section()
        result.add_row(Text("chance", "dim"), *(Text(_level(level), "dim") for level in levels.values()))
    return result


def report(
    comparison: config.Comparison,
    runs: Sequence[Run],
    rows: Sequence[Row],
    levels: dict[str, float | None],
    environment: dict[str, Any],
) -> str:
    """The comparison in Markdown."""
    finished, title = sum(run.finished for run in runs), objective_of_runs(runs).title
    several = len({run.rate for run in runs}) > 1
    columns = ["", *levels, *(["learning rate"] if several else []), "parameters", "state bytes", "tokens/s"]
    lines = [f"# {comparison.name}", "", f"{finished} of {len(runs)} runs have a result. {caption(runs)}", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for row in rows:
        cells = [f"`{row.label}`", *(str(row.slices.get(name, "")) for name in levels)]
        cells += [*([f"{row.rate:g}"] if several else []), *_costs(row)]
        lines.append("| " + " | ".join(cells) + " |")
    if any(level is not None for level in levels.values()):
        chance = ["chance", *map(_level, levels.values())]
        lines.append("| " + " | ".join(chance + [""] * (len(columns) - len(chance))) + " |")
    if several:
        lines += ["", "## Learning rates", "", f"Mean {title} over slices, median over seeds; the best is in bold.", ""]
        rates = sorted({run.rate for run in runs})
        lines += ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" + "|---:" * len(rates) + "|"]
        for row in rows:
            show = lambda rate, row=row: f"**{row.rates[rate]:.3f}**" if rate == row.rate else f"{row.rates[rate]:.3f}"
            lines.append(f"| `{row.label}` | " + " | ".join(show(rate) if rate in row.rates else "-" for rate in rates) + " |")
    pictures = {f"{title.capitalize()} in each slice": SLICES} if len(levels) > 1 else {}
    for what, name in (pictures | {"Learning curves": CURVES}).items():
        lines += ["", f"![{what}]({name})"]
    lines.append("")
    if problems := [f"* `{run.name}`: {run.problem}" for run in runs if run.problem]:
        lines += ["## Runs without a result", "", *problems, ""]
    device, git = environment["device"], environment["git"]
    lines += [
        "## How this was made",
        "",
        f"* task: `{comparison.base.task}`" + (" (an axis replaces it)" if "task" in comparison.varied else ""),
        f"* {comparison.base.training.steps} steps" + (" (an axis replaces it)" if "training.steps" in comparison.varied else ""),
        *(
            ["* fewer where an evaluation's accuracy came above training.stop_above"]
            if any(run.summary.get("early") for run in runs)
            else []
        ),
        *(f"* axis `{path}`: {', '.join(f'`{value}`' for value in values)}" for path, values in comparison.axes.items()),
        f"* `{environment['command']}`",
        f"* {device['count']} x {device['kind']} ({device['platform']}), {device['cores']} cores, Python {environment['python']}",
        "* " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "* " + (f"git {git['revision']}{', with changes' if git['changed'] else ''}" if git else "no git revision"),
        "* every run's own record is in `runs/`, all settings in `config.json`, every number in `results.json` and `results.csv`",
    ]
    return "\n".join(lines) + "\n"


def caption(runs: Sequence[Run]) -> str:
    """How the numbers of a row came about."""
    seeds, rates = len({run.seed for run in runs}), len({run.rate for run in runs})
    parts = [f"{objective_of_runs(runs).title.capitalize()} after the last step"]
    if seeds > 1:
        parts.append(f"median of {seeds} seeds (lowest-highest, or ± half of that range)")
    if rates > 1:
        parts.append(f"at the best of {rates} learning rates")
    return ", ".join(parts) + ". State bytes: decode memory per row."


def _cell(spread: Spread, best: bool) -> Text:
    median = Text(f"{spread.median:.3f}", "bold" if best else "")
    return median if spread.low == spread.high else Text.assemble(median, (f"\n±{(spread.high - spread.low) / 2:.2f}", "dim"))


def _level(chance: float | None) -> str:
    if chance is None:
        return "-"
    return "varies" if math.isnan(chance) else f"{chance:.3f}"


def _costs(row: Row) -> tuple[str, str, str]:
    speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    return f"{row.parameters:,}", f"{row.state_bytes:,}", speed


def _plain(value: Any) -> Any:
    """Named tuples as dicts, all the way down, for JSON."""
    if hasattr(value, "_asdict"):
        return {key: _plain(each) for key, each in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
