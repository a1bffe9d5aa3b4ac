"""docs/private_apis.md lists the private and experimental names of other libraries that the code uses, and no others."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "private_apis.md").read_text()
ROWS = re.findall(r"^\| `(\S+\.py)` \| `(.+?)` \|", PAGE, flags=re.MULTILINE)
FILES = [path for folder in ("seqzoo", "kernels") for path in (ROOT / folder).rglob("*.py") if "seqzoo/kernels" not in str(path)]
OURS_OR_PYTHON = {"seqzoo", "kernels", *sys.stdlib_module_names}


def is_private(part: str) -> bool:
    return part in ("experimental", "extend", "varying") or (part.startswith("_") and not part.startswith("__"))


def is_listed_kind(name: str) -> bool:
    return name.split(".")[0] not in OURS_OR_PYTHON and any(map(is_private, name.split(".")))


def private_names(source: str) -> set[str]:
    """Dotted names with a private part, of modules that are not ours: imports, and attributes of imported names."""
    imported, found = {}, set()
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if is_listed_kind(alias.name)}
            for alias in node.names:
                root = alias.name.split(".")[0]
                imported[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {(alias.asname or alias.name): f"{node.module}.{alias.name}" for alias in node.names}
    found |= set(filter(is_listed_kind, imported.values()))
    for node in nodes:
        if isinstance(node, ast.Attribute):
            if node.attr == "varying":
                found.add(".mat.varying")
            root, _, rest = ast.unparse(node).partition(".")
            name = f"{imported[root]}.{rest}" if root in imported else ""
            if re.fullmatch(r"[\w.]+", name) and is_listed_kind(name):
                found.add(name)
    return found


def test_every_private_name_is_on_the_page():
    missing = [
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        for name in sorted(private_names(path.read_text()))
        if not any(ROOT / file == path and name.startswith(row) for file, row in ROWS)
    ]
    assert not missing, f"not in docs/private_apis.md: {missing}"


@pytest.mark.parametrize("file, name", ROWS)
def test_every_row_has_a_use(file, name):
    source = (ROOT / file).read_text()
    assert any(name.startswith(found) or found.startswith(name) for found in private_names(source)) or name in source


@pytest.mark.parametrize(
    "source, names",
    [
        ("from jax._src import core", {"jax._src.core"}),
        (
            "import jax\nx = jax.experimental.pallas.load",
            {"jax.experimental", "jax.experimental.pallas", "jax.experimental.pallas.load"},
        ),
        ("import orbax.checkpoint as ocp\nocp.utils._read()", {"orbax.checkpoint.utils._read"}),
        ("from flax import nnx\nnnx._x.y", {"flax.nnx._x", "flax.nnx._x.y"}),
        ("import os\nos._exit(1)\nrow = state._replace(a=1)", set()),
    ],
)
def test_private_names_are_found(source, names):
    assert private_names(source) == names
