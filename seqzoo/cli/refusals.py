"""Reports of the parser of the command line, tyro, in one line: it prints boxes with headings and help texts."""

import re

from seqzoo.specs import did_you_mean

RULE = re.compile(r"[─-]{8,}")
OPTION = re.compile(r"^(--[\w.-]+)\s*(.*)")


def in_one_line(box: str, arguments: list[str]) -> str:
    """The report as a line that names the option, the word found and the words wanted.

    Args:
      box: as tyro prints it.
      arguments: of the command line.
    """
    rows = [row.strip("│ ") for row in box.splitlines() if not row.startswith(("╭", "╰"))]
    if "╭" not in box:  # without frames, the heading is a row with a rule below
        rows = rows[2:]
    rules = [place for place, row in enumerate(rows) if RULE.fullmatch(row)] or [len(rows)]
    said, more = " ".join(rows[: rules[0]]).strip(), rows[rules[0] :]
    options: dict[str, str] = {match[1]: match[2] for row in more if (match := OPTION.match(row))}
    if found := re.search(r"Error parsing (--[\w.-]+)", said):
        return f"{found[1]} is {_word(found[1], arguments)}; wanted {_kind(options.get(found[1], ''))}"
    if found := re.search(r"invalid choice .* for argument '(--[\w.-]+)'.*Expected one of \((.*)\)", said):
        return f"{found[1]} is {_word(found[1], arguments)}; wanted one of {found[2].rstrip(',')}"
    if found := re.search(r"Missing value for argument '(--[\w.-]+)'", said):
        return f"{found[1]} has no value; wanted one after it"
    if found := re.search(r"Unrecognized options: (.*)", said):
        return f"unknown on this command line: {found[1]}.{did_you_mean(found[1].split(',')[0], options)} --help lists all settings"
    return said


def _word(option: str, arguments: list[str]) -> str:
    """The word given for an option, as Python writes it."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            return repr(value if equals else " ".join(arguments[place + 1 : place + 2]))
    return "wrong"


def _kind(metavar: str) -> str:
    """The words that tyro's "{None}|FLOAT" stands for."""
    words = {"INT": "a whole number", "FLOAT": "a number", "{None}": "None", "{True,False}": "True or False", "STR": "text"}
    return " or ".join(words.get(part, part.strip("{}").replace(",", ", ")) for part in re.split(r"\|", metavar)) or "another value"
