"""Text files are UTF-8 on every system: nothing reads or writes text in the encoding of the locale."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = [
    ROOT / "train.py",
    *(path for folder in ("seqzoo", "kernels", "benchmarks", "configs") for path in (ROOT / folder).rglob("*.py")),
]


def without_encoding(source: str) -> list[int]:
    """Lines of calls that open, read or write text and name no encoding."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and is_unencoded(node)]


def is_unencoded(call: ast.Call) -> bool:
    given = {keyword.arg for keyword in call.keywords}
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if "encoding" in given or name == "os.open":
        return False
    if last in ("read_text", "write_text"):
        return "." in name  # the function `write_text` of seqzoo.data.atomic_io writes UTF-8
    if last not in ("open", "fdopen", "NamedTemporaryFile"):
        return False
    modes = [node.value for node in (*call.args, *(keyword.value for keyword in call.keywords)) if isinstance(node, ast.Constant)]
    return not any(isinstance(mode, str) and "b" in mode and len(mode) <= 3 for mode in modes)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", True),
        ("open(p)", True),
        ("p.open('a')", True),
        ("p.write_text('x')", True),
        ("open(p, 'rb')", False),
        ("p.open(mode='wb')", False),
        ("p.read_text(encoding='utf-8')", False),
        ("os.open(p, os.O_RDONLY)", False),
        ("write_text(p, 'x')", False),
    ],
)
def test_the_check_finds_text_without_an_encoding(source, found):
    assert bool(without_encoding(source)) == found


def test_every_text_file_is_read_and_written_in_utf_8():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in PATHS for line in without_encoding(path.read_text(encoding="utf-8"))]
    assert not found, f"calls that name no encoding: {found}"
