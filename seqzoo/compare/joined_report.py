"""The files of `train.py report`: a page, a text in Markdown and its figures."""

from pathlib import Path

from seqzoo.compare import figures, html
from seqzoo.compare.joined import Joined
from seqzoo.compare.report import CURVES, EVAL_SETS
from seqzoo.compare.tables import format_chance

PAGE, TEXT, SIZES = "report.html", "report.md", "state_bytes.png"


def write(joined: Joined, folder: Path) -> Path:
    """Writes report.html, report.md and the figures into a folder, each atomically. Returns the path of the page.

    Raises:
      WriteError: a file cannot be written.
    """
    from seqzoo.data.atomic_io import write_errors, write_text

    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(joined, folder)
    write_text(folder / TEXT, markdown(joined, drawn))
    write_text(folder / PAGE, html.page(joined, folder))
    return folder / PAGE


def _draw(joined: Joined, folder: Path) -> dict[str, str]:
    """Draws the figures; returns {title: file}."""
    title, rows = joined.what.capitalize(), [entry.row for entry in joined.entries if entry.row]
    if not rows:
        return {}
    lines = {member.run.name: member.lines for entry in joined.entries for member in entry.shown}
    drawn = {"Learning curves": (CURVES, figures.learning_curves(rows, lines, joined.objective, joined.levels))}
    if len(joined.settings) > 1:
        picture = figures.eval_sets(rows, joined.settings, joined.objective, joined.levels, joined.what)
        drawn[f"{title} in each evaluation set"] = EVAL_SETS, picture
    if series := joined.sizes():
        points = {name: [point for _, point in pairs] for name, pairs in series.items()}
        what = f"{joined.what}{', mean over evaluation sets,' if len(joined.settings) > 1 else ''}"
        drawn[f"{title} against state size"] = SIZES, figures.by_state(points, joined.objective, joined.chance(), what)
    for name, picture in drawn.values():
        figures.save(picture, folder / name)
    return {what: name for what, (name, _) in drawn.items()}


def markdown(joined: Joined, drawn: dict[str, str]) -> str:
    """The report in Markdown."""
    ranks, sets = joined.ranks(), list(joined.levels)
    columns = ["rank", "", *sets, "learning rate", "seeds", "parameters", "state bytes", "tokens/s", "status"]
    lines = [f"# {_plain(joined.title)}", "", joined.in_words(), joined.caption(), ""]
    lines += [_line(columns), "|---:|---" + "|---:" * (len(columns) - 3) + "|---|"]
    for entry in joined.entries:
        row = entry.row
        costs = (row and row.parameters, row and row.state_bytes, row and row.tokens_per_second)
        cells = [str(ranks.get(entry.label, "")), f"`{entry.label}`"]
        cells += [str(row.eval_sets.get(name, "")) if row else "" for name in sets]
        cells += [f"{entry.shown[0].run.rate:g}", str(len({member.run.seed for member in entry.shown}))]
        cells += ["" if number is None else f"{number:,.0f}" for number in costs]
        lines.append(_line([*cells, entry.status]))
    if any(level is not None for level in joined.levels.values()):
        chance = ["", "chance", *map(format_chance, joined.levels.values())]
        lines.append(_line(chance + [""] * (len(columns) - len(chance))))
    for what, name in drawn.items():
        lines += ["", f"![{what}]({name})"]
    lines += ["", "## Specs", "", *(f"* `{_plain(entry.label)}`: `{_plain(entry.spec)}`" for entry in joined.entries), ""]
    if joined.problems:
        lines += ["## Runs without a result", ""]
        lines += [f"* `{_plain(run)}`: {_plain(problem)}" for run, problem in joined.problems.items()]
        lines.append("")
    lines += [f"Task: `{_plain(joined.task)}`. Interactive: [{PAGE}]({PAGE})."]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell, keep="`") for cell in cells) + " |"


def _plain(text: str, keep: str = "") -> str:
    """Text of a run folder without what would end its cell or code, or be HTML."""
    shown = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return shown if keep else shown.replace("`", "'")
