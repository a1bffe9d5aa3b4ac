"""The page docs/reference.md, from the declarations of settings: `python -m benchmarks.tables.reference` writes it."""

from pathlib import Path

from seqzoo.cli.reference import REGISTRIES, Entry, default_in_words, entries

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEAD = """# Reference

Everything that a spec string can name, with its settings. `python train.py help NAME` prints an entry. This page is generated
from the declarations in the code: `python -m benchmarks.tables.reference` writes it.
"""


def markdown() -> str:
    """The whole page."""
    parts, ours = [HEAD], [each for each in entries() if each.source.startswith("seqzoo.")]  # not those of plugins
    for kind in REGISTRIES:
        parts += [f"## {kind.capitalize()}s\n", *(_entry(each) for each in ours if each.kind == kind)]
    return "\n".join(parts)


def _entry(entry: Entry) -> str:
    lines = [f"### `{entry.name}`", "", f"`{entry.source}`", "", "```text", entry.summary]
    lines += ["", entry.text] if entry.text else []
    lines += ["```", ""]
    if entry.settings:
        lines += ["| setting | type | default | |", "| --- | --- | --- | --- |"]
        for each in entry.settings:
            default = "required" if each.default is ... else f"`{default_in_words(each)}`"
            cells = (f"`{each.name}`", each.type, default, " ".join(each.text.split()))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
