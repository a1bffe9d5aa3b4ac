"""The first word of a docstring is never a question word: a noun phrase or a verb names the thing at once."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("seqzoo", "kernels", "tests", "benchmarks", "configs")
QUESTION = re.compile(r"\s*(What|Where|How|Which|Whether|Whose|Who|Why)\b")


def strings(path: Path) -> list[tuple[int, str]]:
    """Line and text of every string that is a statement: docstrings, and the texts of settings."""
    statements = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Expr)]
    return [(s.lineno, s.value) for s in statements if isinstance(s, ast.Constant) and isinstance(s.value, str)]


def test_no_docstring_begins_with_a_question_word():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "seqzoo/kernels" not in str(path)]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in paths for line, text in strings(path) if QUESTION.match(text)]
    assert not found, f"docstrings that begin with a question word: {found}"
