"""The command `report`: run and comparison folders, finished or not, as a page, a text and figures."""

from pathlib import Path

from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import UsageError, checked, parse_arguments
from seqzoo.compare.tables import print_line
from seqzoo.entry import program


class Report(config.Section):
    """Settings of `report`."""

    out: str | None = None
    """Folder to write; None: report/ in the folder that is reported, of several in the working directory."""


def report(arguments: list[str], console: Console) -> int:
    """`report FOLDER... [--out DIR]`."""
    from seqzoo.compare import html, joined, joined_report

    count = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, words = arguments[:count], arguments[count:]
    settings = parse_arguments(Report, words, f"{program()} report FOLDER...")
    if not folders:
        raise UsageError(f"report needs folders of comparisons or runs: {program()} report runs/NAME runs/OTHER")
    checked(html.check_installed)
    found = checked(lambda: joined.read(folders))
    out = Path(settings.out or (Path(folders[0]) / "report" if len(folders) == 1 else "report"))
    print_line(console, f"written: {joined_report.write(found, out)}, with {joined_report.TEXT} and figures beside it")
    return 0
