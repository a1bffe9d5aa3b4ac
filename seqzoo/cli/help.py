"""The command `help`: everything that a spec can name, and its settings."""

import itertools
from collections.abc import Iterator

from rich.console import Console

from seqzoo import config, plugins
from seqzoo.cli.reference import Entry, default_in_words, entries
from seqzoo.cli.shared import NAMES, USAGE, UsageError, checked, take_flag
from seqzoo.compare.tables import print_line
from seqzoo.entry import program
from seqzoo.specs import did_you_mean, split

INDENT = 4
WIDTH = 24  # of the column of names


def help(arguments: list[str], console: Console) -> int:
    """`help [NAME...] [--imports MODULES]`."""
    modules, names = take_flag("--imports", arguments)
    checked(lambda: plugins.import_modules(name for given in modules for name in split(given)))
    checked(plugins.import_entry_points)
    if not names:
        print_line(console, overview())
    for name in names:
        if name in NAMES:
            print_line(console, USAGE.replace("train.py", program()))
            continue
        shown = [*map(in_words, called(name)), *settings_called(name)]
        if not shown:
            known = [*(each.name for each in entries()), *config.settings(config.Experiment())]
            raise UsageError(f"nothing is called {name!r}.{did_you_mean(name, known)} {program()} help lists all names")
        for each in shown:
            print_line(console, each)
    return 0


def called(name: str) -> Iterator[Entry]:
    """The entries of a name: in specs, or that of a class."""
    for each in entries():
        if name.casefold() in (each.name.casefold(), each.source.rpartition(".")[2].casefold()):
            yield each


def settings_called(name: str) -> Iterator[str]:
    """The settings of an experiment of that name, dotted or its last part, for a terminal."""
    for path, default in config.settings(config.Experiment()).items():
        *sections, last = path.split(".")
        if name.replace("-", "_") not in (path, last, *sections):
            continue
        owner = config.Experiment
        for section in sections:
            owner = type(getattr(owner(), section))
        text = " ".join((owner.model_fields[last].description or "").split())
        yield f"--{path.replace('_', '-')}: setting of an experiment, default {default!r}\n{' ' * INDENT}{text}"


def overview() -> str:
    """All names by kind, each with the first line of its docstring."""
    lines = [
        f"{program()} help NAME shows the settings of a name. A spec is a name with settings, such as gla(heads=4, expand_v=2)."
    ]
    for kind, named in itertools.groupby(entries(), key=lambda each: each.kind):
        lines += ["", f"{kind}s:", *(f"  {each.name:<{WIDTH}}{each.summary}" for each in named)]
    return "\n".join(lines)


def in_words(entry: Entry) -> str:
    """An entry for a terminal: description, settings, source."""
    lines = [f"{entry.name}: {entry.kind}, {entry.source}", "", entry.summary]
    lines += ["", entry.text] if entry.text else []
    lines += ["", "settings:" if entry.settings else "no settings"]
    for each in entry.settings:
        default = "required" if each.default is ... else f"default {default_in_words(each)}"
        lines += [f"  {each.name}: {each.type}, {default}"]
        lines += [" " * INDENT + line for line in each.text.splitlines()]
    return "\n".join([*lines, ""])
