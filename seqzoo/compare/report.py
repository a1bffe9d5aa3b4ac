"""The report of a comparison in Markdown."""

from collections.abc import Sequence
from typing import Any

from seqzoo import config
from seqzoo.compare.sizing import SHORT, explain, not_matched
from seqzoo.compare.summary import STILL_LEARNING, Row, Run, objective_of_runs, shown_in_words
from seqzoo.compare.tables import caption, chosen_axes, format_chance, format_costs, format_matched, seeds_differ

REPORT = "report.md"
CURVES = "learning_curves.png"
EVAL_SETS = "eval_sets.png"
ENDINGS = {"solved": "solved", "plateau": "at a plateau", "budget": "at the budget", "learning": STILL_LEARNING}
REASONS = {
    "solved": "an evaluation's accuracy was above training.stop_above",
    "plateau": "training.patience evaluations brought no gain",
}


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
    seeds, rates = ["seeds"] if seeds_differ(rows) else [], ["learning rate"] if several else []
    chosen, matched = chosen_axes(rows), [f"matched: {SHORT[comparison.match]}"] if comparison.match else []
    columns = ["", *levels, *seeds, *chosen.values(), *rates, *matched, "parameters", "state bytes", "tokens/s"]
    have = f"{finished} of {len(runs)} runs have a result{endings(runs)}."
    lines = [f"# {comparison.name}", "", f"{have} {caption(runs)}", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for row in rows:
        cells = [_title(row), *(str(row.eval_sets.get(name, "")) for name in levels)]
        cells += [str(len(row.runs))] if seeds else []
        cells += [f"`{row.chosen[axis]}`" if row.chosen.get(axis) else "" for axis in chosen]
        cells += [f"{row.rate:g}"] if several else []
        cells += [*([format_matched(row.point)] if matched else []), *format_costs(row)]
        lines.append("| " + " | ".join(cells) + " |")
    if any(level is not None for level in levels.values()):
        chance = ["chance", *map(format_chance, levels.values())]
        lines.append("| " + " | ".join(chance + [""] * (len(columns) - len(chance))) + " |")
    if several:
        lines += [
            "",
            "## Learning rates",
            "",
            f"Mean validation {title} over evaluation sets, median over seeds; the best is in bold.",
        ]
        marked = any(row.rates_still_learning for row in rows)
        lines += [*(["+ marks learning rates with a run that is still learning."] if marked else []), ""]
        rates = sorted({run.rate for run in runs})
        lines += ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" + "|---:" * len(rates) + "|"]
        for row in rows:
            cells = [_validation(row, rate) if rate in row.rates else "-" for rate in rates]
            lines.append("| " + " | ".join([_title(row), *cells]) + " |")
    if comparison.match:
        lines += ["", "## Budgets", "", *(f"* {line}" for line in explain(comparison, not_matched(comparison)))]
    figures = {f"{shown_in_words(runs).capitalize()} in each evaluation set": EVAL_SETS} if len(levels) > 1 else {}
    for what, name in (figures | {"Learning curves": CURVES}).items():
        lines += ["", f"![{what}]({name})"]
    lines.append("")
    if problems := [f"* `{run.name}`: {run.problem}" for run in runs if run.problem]:
        lines += ["## Runs without a result", "", *problems, ""]
    device, git = environment["device"], environment["git"]
    lines += [
        "## Provenance",
        "",
        f"* task: `{comparison.base.task}`" + (" (an axis replaces it)" if "task" in comparison.varied else ""),
        f"* {comparison.base.training.steps} steps" + (" (an axis replaces it)" if "training.steps" in comparison.varied else ""),
        *(f"* fewer where {REASONS[each]}" for each in REASONS if any(run.summary.get("ended") == each for run in runs)),
        *(f"* still learning at the end, and continued to {run.more_steps} steps: `{run.name}`" for run in runs if run.more_steps),
        *(f"* axis `{path}`: {', '.join(f'`{value}`' for value in values)}" for path, values in comparison.axes.items()),
        f"* `{environment['command']}`",
        f"* {device['count']} x {device['kind']} ({device['platform']}), {device['cores']} cores, Python {environment['python']}",
        "* " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "* " + (f"git {git['revision']}{', with changes' if git['changed'] else ''}" if git else "no git revision"),
        "* each run has a folder in `runs/`; all settings are in `config.json`, all numbers in `results.json` and `results.csv`",
    ]
    return "\n".join(lines) + "\n"


def endings(runs: Sequence[Run]) -> str:
    """The endings of the runs with a result: ": 3 solved, 2 at a plateau, 1 at the budget, 4 still learning"."""
    ended = ["learning" if run.summary["still_learning"] else run.summary["ended"] for run in runs if run.finished]
    counts = [f"{ended.count(each)} {words}" for each, words in ENDINGS.items() if each in ended]
    return f": {', '.join(counts)}" if counts else ""


def _title(row: Row) -> str:
    return f"`{row.label}`" + (f" *{STILL_LEARNING}*" if row.still_learning else "")


def _validation(row: Row, rate: float) -> str:
    number = f"{row.rates[rate]:.3f}" + (" +" if rate in row.rates_still_learning else "")
    return f"**{number}**" if rate == row.rate else number
