"""`implementation=None` is chosen from a table of measured times, which a benchmark writes."""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import choose
from seqzoo.kernels.common import explain, implementations
from seqzoo.kernels.linear_attention import IMPLEMENTATIONS, linear_attention

TABLE = {"cpu": {"head": {(1, 8, 8): ("f", "small"), (64, 8, 8): ("f", "many"), (1, 128, 128): ("f", "wide")}}}
KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize(
    ("sizes", "form"),
    [((1, 8, 8), "small"), ((4, 8, 8), "small"), ((16, 8, 8), "many"), ((2, 64, 100), "wide"), ((10**6, 1, 1), "many")],
)
def test_the_nearest_sizes_decide_by_their_ratios(sizes, form):
    assert implementations.fastest(TABLE, "head", sizes, "unknown") == ("f", form)


def test_what_was_never_timed_takes_the_other_form(monkeypatch):
    assert implementations.fastest(TABLE, "channel", (1, 8, 8), "unknown") == ("unknown", "unknown")
    monkeypatch.setattr(implementations, "platform", lambda: "tpu")
    assert implementations.fastest(TABLE, "head", (1, 8, 8), "unknown") == ("unknown", "unknown")


@pytest.mark.parametrize("decays", [{}, {"log_decay": (1, 9, 2)}, {"log_decay": (1, 9, 2, 4)}, {"value_log_decay": (1, 9, 2, 4)}])
@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
def test_an_op_takes_the_form_of_the_table_for_its_kind(form, decays, monkeypatch):
    other = {"recurrent": "chunkwise", "chunkwise": "recurrent"}[form]
    kind = (
        "none" if not decays else "value" if "value_log_decay" in decays else "head" if len(decays["log_decay"]) == 3 else "channel"
    )
    kinds = {name: {(2, 4, 4): (form, other) if name == kind else (other, form)} for name in ("none", "head", "channel", "value")}
    monkeypatch.setattr("seqzoo.kernels.linear_attention.defaults.TUNING", {"cpu": kinds})
    x = jnp.zeros((1, 9, 2, 4))
    said = explain(functools.partial(linear_attention, **{name: jnp.zeros(shape) for name, shape in decays.items()}), x, x, x)
    assert said[0] == f"linear_attention: implementation={form!r}, implementation={other!r} with gradients"


@pytest.mark.parametrize("op", choose.OPS)
def test_a_table_is_as_its_benchmark_writes_it(op):
    """Regenerate it with `python -m benchmarks.choose`."""
    _, _, forms, name, variable = choose.OPS[op]
    module = importlib.import_module(f"seqzoo.kernels.{op}.{name}")
    table = getattr(module, variable)
    assert choose.source(module, variable, table) == (KERNELS / op / f"{name}.py").read_text()
    found = [pair for kinds in table.values() for sizes in kinds.values() for pair in sizes.values()]
    for taken, candidates in zip(zip(*found, strict=True), forms, strict=True):
        assert set(taken) <= set(candidates)


def test_the_fastest_form_is_chosen_by_running_all():
    shape = jax.random.normal(jax.random.key(0), (3, 1, 33, 2, 4))
    op = choose.OPS["linear_attention"]
    forms, medians = choose.fastest(op, dict(zip("qkv", shape, strict=True)), repeats=3)
    for form, median, candidates in zip(forms, medians, op.forms, strict=True):
        assert set(median) == set(candidates) and form == min(median, key=median.get)


def test_with_gradients_the_other_form_runs(monkeypatch):
    """A form that cannot run is not noticed by the pass that does not take it."""

    class Broken:
        def forward(*arrays, **settings):
            raise RuntimeError("taken")

    x = jnp.ones((1, 9, 2, 4))
    monkeypatch.setattr(
        "seqzoo.kernels.linear_attention.defaults.TUNING", {"cpu": {"none": {(2, 4, 4): ("recurrent", "chunkwise")}}}
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "chunkwise", Broken)
    linear_attention(x, x, x)
    with pytest.raises(RuntimeError, match="taken"):
        jax.grad(lambda x: linear_attention(x, x, x)[0].sum())(x)
