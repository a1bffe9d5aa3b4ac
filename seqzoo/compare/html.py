"""The page of a report: one HTML file with table, figures and scripts inside, which opens offline.

Text from run folders is data everywhere: Jinja escapes it in the page and Bokeh in the figures, and the page's own policy lets only
the scripts run whose digests it lists, and loads nothing.
"""

import base64
import hashlib
import importlib.util
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seqzoo.compare.colours import Style, styles
from seqzoo.compare.joined import Entry, Joined
from seqzoo.compare.summary import Range
from seqzoo.compare.tables import format_chance

PACKAGES = ("bokeh", "jinja2")
MEAN = "mean over evaluation sets"


class Link(NamedTuple):
    """A link to a file beside the page."""

    target: str
    text: str


class Cell(NamedTuple):
    """A cell of the table."""

    text: str
    sort: float | None = None  # by which it is sorted; None: by its text
    number: bool = True
    strong: bool = False
    small: str = ""  # below the text
    hint: str = ""  # on hovering
    links: tuple[Link, ...] = ()


def check_installed() -> None:
    """Raises ValueError if a package that the page needs is not installed. Imports nothing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'the report needs {" and ".join(missing)}, not installed; wanted pip install "seqzoo[report]"')


def page(joined: Joined, folder: Path) -> str:
    """The report as one HTML page.

    Args:
      joined: what is shown.
      folder: where the page will be, for its links to the config.json of each run.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    from seqzoo.compare import html_figures

    eval_sets = [None, *joined.settings]
    looks = styles(entry.label for entry in joined.entries) | styles(entry.series for entry in joined.entries)
    drawn = html_figures.draw(joined, looks, eval_sets)
    script, divs = components(drawn, wrap_script=False, wrap_plot_info=True) if drawn else ("", {})
    here = Path(__file__).parent
    library = Resources(mode="inline", components=["bokeh"]).js_raw
    scripts = [*library, script, (here / "page.js").read_text(encoding="utf-8")]
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True)
    return environment.get_template("page.html").render(
        title=joined.title,
        summary=joined.in_words(),
        policy=_policy(scripts),
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(each) for each in scripts],
        figures={name: Markup(div) for name, div in divs.items()},
        families=list(dict.fromkeys(family for entry in joined.entries for family in entry.families)),
        eval_sets=[name or MEAN for name in eval_sets],
        caption=joined.caption(),
        columns=columns(joined),
        rows=_rows(joined, folder, looks),
        chances=_chances(joined),
        problems=joined.problems,
        task=joined.task,
    )


def _policy(scripts: Iterable[str]) -> str:
    """The Content-Security-Policy: these scripts, styles, and images of the page itself; nothing from anywhere else."""
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"


def columns(joined: Joined) -> list[str]:
    """The heads of the table."""
    sets = list(joined.levels)
    mean = ["mean"] if len(sets) > 1 else []
    return [
        "rank",
        "mixer",
        "family",
        *sets,
        *mean,
        "learning rate",
        "parameters",
        "state bytes",
        "tokens/s",
        "status",
        "config by seed",
    ]


def _rows(joined: Joined, folder: Path, looks: Mapping[str, Style]) -> list[dict[str, Any]]:
    ranks = joined.ranks()
    return [
        {
            "label": entry.label,
            "spec": entry.spec,
            "seeds": ", ".join(str(member.run.seed) for member in entry.shown),
            "families": entry.families,
            "swatch": _swatch(looks[entry.label]),
            "cells": list(_cells(joined, entry, ranks, folder)),
        }
        for entry in joined.entries
    ]


def _cells(joined: Joined, entry: Entry, ranks: Mapping[str, int], folder: Path) -> Iterable[Cell]:
    row, first = entry.row, entry.shown[0].run
    yield Cell(str(ranks.get(entry.label, "")), ranks.get(entry.label))
    yield Cell(entry.label, number=False, small="" if entry.spec == entry.label else entry.spec)
    yield Cell(", ".join(entry.families).replace("_", " "), number=False)
    for name in joined.levels:
        yield _value(row and row.eval_sets.get(name), joined.is_best(entry, name))
    if len(joined.levels) > 1:
        yield _value(row and row.score, joined.is_best(entry, None))
    tried = ", ".join(f"{rate:g}: {score:.3f}" for rate, score in row.rates.items()) if row else ""
    yield Cell(f"{first.rate:g}", first.rate, hint=f"tried {tried}" if row and len(row.rates) > 1 else "")
    for number in (row and row.parameters, row and row.state_bytes, row and row.tokens_per_second):
        yield Cell("" if number is None else f"{number:,.0f}", number)
    yield Cell(entry.status, number=False)
    yield Cell("", number=False, links=tuple(_link(member.folder, str(member.run.seed), folder) for member in entry.shown))


def _value(values: Range | None, best: bool) -> Cell:
    if values is None:
        return Cell("")
    spread = "" if values.low == values.high else f"{values.low:.3f}-{values.high:.3f}"
    return Cell(f"{values.median:.3f}", values.median, strong=best, small=spread)


def _link(run: Path, text: str, folder: Path) -> Link:
    """A relative link from the page to a run's config.json."""
    relative = os.path.relpath(run.absolute() / "config.json", folder.absolute())
    return Link(urllib.parse.quote(Path(relative).as_posix()), text)


def _chances(joined: Joined) -> list[str]:
    """The cells of the row of chance levels; none without any."""
    if all(level is None for level in joined.levels.values()):
        return []
    return ["", "chance", "", *map(format_chance, joined.levels.values())]


def _swatch(look: Style) -> Any:
    """A piece of a curve's line with its marker."""
    from markupsafe import Markup

    shapes = {
        "o": '<circle cx="17" cy="6" r="4"/>',
        "s": '<rect x="13" y="2" width="8" height="8"/>',
        "^": '<path d="M12 10 L17 1 L22 10 Z"/>',
        "D": '<path d="M12 6 L17 1 L22 6 L17 11 Z"/>',
        "v": '<path d="M12 2 L17 11 L22 2 Z"/>',
        "P": '<path d="M15 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "h": '<path d="M12 6 L14.5 1.5 L19.5 1.5 L22 6 L19.5 10.5 L14.5 10.5 Z"/>',
    }
    dash = " ".join(f"{1.5 * each:g}" for each in look.dash)
    line = f'<line x1="0" y1="6" x2="34" y2="6" stroke="{look.colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    return Markup(
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true" fill="{look.colour}">{line}{shapes[look.marker]}</svg>'
    )
