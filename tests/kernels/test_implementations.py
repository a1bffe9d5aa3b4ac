"""The choice of `implementation=None` from a table of measured times, which a benchmark writes."""

import ast
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import tune
from seqzoo.kernels.common import explain, implementations
from seqzoo.kernels.linear_attention import IMPLEMENTATIONS, linear_attention


def entry(forward, backward):
    """An entry of a table in which these implementations are the fastest."""
    return {"forward": {"slow": 3.0, forward: 1.0}, "backward": {"slow": 9.0, "slower": 10.0, backward: 2.0}}


TABLE = {"cpu": {"head": {(1, 8, 8): entry("f", "small"), (64, 8, 8): entry("f", "many"), (1, 128, 128): entry("f", "wide")}}}
KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize(
    ("sizes", "implementation"),
    [((1, 8, 8), "small"), ((4, 8, 8), "small"), ((16, 8, 8), "many"), ((2, 64, 100), "wide"), ((10**6, 1, 1), "many")],
)
def test_the_nearest_sizes_decide_by_their_ratios(sizes, implementation):
    assert implementations.fastest(TABLE, "head", sizes, "unknown") == ("f", implementation)


def test_a_sole_implementation_without_a_time_is_the_fastest():
    assert implementations.fastest_of({"forward": {"a": None}, "backward": {"a": 1.0, "b": 0.5}}) == ("a", "b")


def test_a_case_without_a_measurement_takes_the_default(monkeypatch):
    assert implementations.fastest(TABLE, "channel", (1, 8, 8), "unknown") == ("unknown", "unknown")
    monkeypatch.setattr(implementations, "platform", lambda: "tpu")
    assert implementations.fastest(TABLE, "head", (1, 8, 8), "unknown") == ("unknown", "unknown")


@pytest.mark.parametrize("decays", [{}, {"log_decay": (1, 9, 2)}, {"log_decay": (1, 9, 2, 4)}, {"value_log_decay": (1, 9, 2, 4)}])
@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_an_op_takes_the_implementation_of_the_table_for_its_kind(implementation, decays, monkeypatch):
    other = {"recurrent": "chunkwise", "chunkwise": "recurrent"}[implementation]
    kind = (
        "none" if not decays else "value" if "value_log_decay" in decays else "head" if len(decays["log_decay"]) == 3 else "channel"
    )
    kinds = {
        name: {(2, 4, 4): entry(implementation, other) if name == kind else entry(other, implementation)}
        for name in ("none", "head", "channel", "value")
    }
    monkeypatch.setattr("seqzoo.kernels.linear_attention.defaults.TUNING", {"cpu": kinds})
    x = jnp.zeros((1, 9, 2, 4))
    said = explain(functools.partial(linear_attention, **{name: jnp.zeros(shape) for name, shape in decays.items()}), x, x, x)
    assert said[0] == f"linear_attention: implementation={implementation!r}, implementation={other!r} with gradients"


@pytest.mark.parametrize("op", tune.OPS)
def test_a_table_is_as_its_benchmark_writes_it(op):
    """Regenerate it with `python -m benchmarks.tune`."""
    module = importlib.import_module(f"seqzoo.kernels.{op}.tuning")
    assert tune.source(module, module.TUNING) == (KERNELS / op / "tuning.py").read_text()
    entries = [entry for kinds in module.TUNING.values() for sizes in kinds.values() for entry in sizes.values()]
    assert all(set(entry[which]) <= set(getattr(tune.OPS[op], which)) for entry in entries for which in ("forward", "backward"))


def test_every_candidate_is_timed_and_the_table_says_so():
    shape = jax.random.normal(jax.random.key(0), (3, 1, 33, 2, 4))
    op = tune.OPS["linear_attention"]
    found = tune.times(op, dict(zip("qkv", shape, strict=True)), repeats=3)
    assert {which: tuple(times) for which, times in found.items()} == {"forward": op.forward, "backward": op.backward}
    assert all(time > 0 for times in found.values() for time in times.values())
    table = {"cpu": {"none": {(2, 4, 4): found}}}
    source = tune.source(importlib.import_module("seqzoo.kernels.linear_attention.tuning"), table)
    assert ast.literal_eval(source.partition("TUNING: TuningTable = ")[2]) == table


def test_with_gradients_the_other_form_runs(monkeypatch):
    """An implementation that cannot run is not noticed by the pass that does not take it."""

    class Broken:
        def forward(*arrays, **settings):
            raise RuntimeError("taken")

    x = jnp.ones((1, 9, 2, 4))
    monkeypatch.setattr(
        "seqzoo.kernels.linear_attention.defaults.TUNING", {"cpu": {"none": {(2, 4, 4): entry("recurrent", "chunkwise")}}}
    )
    monkeypatch.setitem(IMPLEMENTATIONS, "chunkwise", Broken)
    linear_attention(x, x, x)
    with pytest.raises(RuntimeError, match="taken"):
        jax.grad(lambda x: linear_attention(x, x, x)[0].sum())(x)
