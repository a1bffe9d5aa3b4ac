"""The README's code runs, its table is the registry's, and what it links to is there."""

import re
from pathlib import Path

import pytest

from benchmarks.tables import mixers as table
from benchmarks.tables import speed
from helpers.tolerances import assert_close

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_code_runs_and_the_pieces_give_the_whole(code):
    names = {}
    exec(code, names)
    assert_close(names["jax"].numpy.concatenate([names["first"], names["rest"]], axis=1), names["y"])


def test_the_table_of_mixers_is_that_of_the_registry():
    """Regenerate it with `python -m benchmarks.tables.mixers`."""
    shown = README.split("<!-- mixers: python -m benchmarks.tables.mixers -->\n")[1].split("<!-- end of mixers -->")[0]
    assert shown.strip() == table.markdown().strip()


@pytest.mark.parametrize("name", speed.TABLES)
def test_the_tables_of_speed_are_those_of_the_recorded_results(name):
    """Regenerate them with `python -m benchmarks.tables.speed`."""
    shown = README.split(f"<!-- {name}: python -m benchmarks.tables.speed -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert shown.strip() == speed.TABLES[name]().strip()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:docs|configs|tests|benchmarks|seqzoo)/[\w./]+\.\w+", README))))
def test_every_path_named_in_the_readme_exists(path):
    assert (ROOT / path).is_file()
