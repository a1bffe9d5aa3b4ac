"""The report of a comparison in Markdown."""

from collections.abc import Sequence
from typing import Any

from seqzoo import config
from seqzoo.compare.summary import Row, Run, objective_of_runs
from seqzoo.compare.tables import caption, format_chance, format_costs

REPORT = "report.md"
CURVES = "learning_curves.png"
EVAL_SETS = "eval_sets.png"


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
        cells = [f"`{row.label}`", *(str(row.eval_sets.get(name, "")) for name in levels)]
        cells += [*([f"{row.rate:g}"] if several else []), *format_costs(row)]
        lines.append("| " + " | ".join(cells) + " |")
    if any(level is not None for level in levels.values()):
        chance = ["chance", *map(format_chance, levels.values())]
        lines.append("| " + " | ".join(chance + [""] * (len(columns) - len(chance))) + " |")
    if several:
        lines += ["", "## Learning rates", "", f"Mean {title} over evaluation sets, median over seeds; the best is in bold.", ""]
        rates = sorted({run.rate for run in runs})
        lines += ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" + "|---:" * len(rates) + "|"]
        for row in rows:
            show = lambda rate, row=row: f"**{row.rates[rate]:.3f}**" if rate == row.rate else f"{row.rates[rate]:.3f}"
            lines.append(f"| `{row.label}` | " + " | ".join(show(rate) if rate in row.rates else "-" for rate in rates) + " |")
    figures = {f"{title.capitalize()} in each evaluation set": EVAL_SETS} if len(levels) > 1 else {}
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
        *(
            ["* fewer where an evaluation's accuracy was above training.stop_above"]
            if any(run.summary.get("ended") == "solved" for run in runs)
            else []
        ),
        *(f"* axis `{path}`: {', '.join(f'`{value}`' for value in values)}" for path, values in comparison.axes.items()),
        f"* `{environment['command']}`",
        f"* {device['count']} x {device['kind']} ({device['platform']}), {device['cores']} cores, Python {environment['python']}",
        "* " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "* " + (f"git {git['revision']}{', with changes' if git['changed'] else ''}" if git else "no git revision"),
        "* each run has a folder in `runs/`; all settings are in `config.json`, all numbers in `results.json` and `results.csv`",
    ]
    return "\n".join(lines) + "\n"
