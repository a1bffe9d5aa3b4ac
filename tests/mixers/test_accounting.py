"""State bytes: the published formulas and the bytes carried differ by exactly what the table says."""

from pathlib import Path

import jax
import pytest
from flax import nnx

from benchmarks.tables import states
from seqzoo import mixers
from seqzoo.model import LanguageModel

PAGE = (Path(__file__).parents[2] / "docs" / "mqar.md").read_text()


@pytest.mark.parametrize("account", states.ACCOUNTS, ids=lambda account: account.spec)
@pytest.mark.parametrize(("d_model", "length"), [(64, 1024), (128, 256)])
def test_published_and_carried_bytes_differ_by_the_terms_that_are_named(account, d_model, length):
    numbers = account.published(d_model, length) + sum(term(d_model, length) for term in account.terms.values())
    assert states.carried(account.spec, d_model, length) == 4 * numbers


def test_every_layer_with_a_published_formula_is_in_the_table():
    """Zoology and Based count these; they have no formula for the other mixers."""
    published = {"softmax", "base_conv", "based", "gla", "deltanet", "gated_deltanet", "rwkv7", "mamba", "mamba2"}
    assert {mixers.registry.check(account.spec).name for account in states.ACCOUNTS} == published


@pytest.mark.parametrize(("d_model", "f", "published"), [(48, 8, 9_396), (128, 16, 80_484)])
def test_the_published_bytes_of_based_are_ours_with_every_difference_named(d_model, f, published):
    """Figure 2 of arXiv:2402.18668 counts a BaseConv layer of three taps and a Based layer: 4 ((d D + D) + 3 d)."""
    features = 1 + f + f * (f + 1) // 2
    assert published == 4 * ((d_model * features + features) + 3 * d_model)
    layers = ("base_conv(conv_size=3)", f"based(heads=1, feature_dim={f})")
    model = nnx.eval_shape(lambda: LanguageModel(16, d_model, layers=layers, depth=2, channel="none", rngs=nnx.Rngs(0)))
    present_input = 4 * d_model  # a convolution of three taps has to remember two inputs
    counters = 4 * (1 + 1 + 2)  # each layer's document id, the model's own and its position
    assert mixers.state_bytes(model, 1024) == published - present_input + counters
    state = jax.eval_shape(lambda: model.init_state(1, 1024))
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == "int32") == 4


def test_the_table_is_that_of_the_states():
    """Regenerate it with `python -m benchmarks.tables.states`."""
    shown = PAGE.split("<!-- states: python -m benchmarks.tables.states -->\n")[1].split("<!-- end of states -->")[0]
    assert shown.strip() == states.markdown().strip()
