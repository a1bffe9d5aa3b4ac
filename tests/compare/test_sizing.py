"""Equal budgets: settings are solved for so that the measure is met, or the reason is given."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from seqzoo import mixers
from seqzoo.compare import sizing
from seqzoo.compare.sizing import Cost
from seqzoo.config import Model
from seqzoo.mixers.shapes import Measure
from seqzoo.model import LanguageModel, params
from seqzoo.specs import SpecError, parse

MODEL = Model(d_model=64, depth=2, channel="none", tie_embeddings=False)
VOCABULARY, LENGTH = 256, 64
FRONT = "base_conv(conv_size=3)"
# These cannot be given a budget of state: no setting changes it, or it grows with the row.
WITHOUT = {
    "base_conv": "declares no shape",
    "aaren": "declares no shape",
    "rwkv4": "declares no shape",
    "softmax": "grows",
    "sigmoid": "grows",
}


def size(*layers, measure: Measure = "state_bytes", budget=4096, most=1, model=MODEL):
    return sizing.size(model, layers, VOCABULARY, LENGTH, measure, budget, most)


def settings(candidate):
    """The settings of the last layer."""
    return dict(parse(candidate.layers[-1]).settings)


def memory(spec, d_model=64):
    """Bytes of the float leaves of a state that are no tails, counted by hand."""
    state = nnx.eval_shape(lambda: mixers.create(spec, d_model, rngs=nnx.Rngs(0)).init_state(1, LENGTH))
    leaves = {name: leaf for name, leaf in state._asdict().items() if name not in ("tail", "tails") and not name.endswith("_tail")}
    return sum(4 * leaf.size for leaf in jax.tree.leaves(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))


@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_has_4_kib_within_5_percent_or_a_reason(name):
    found = size(FRONT, name)
    if name in WITHOUT:
        assert not found.matched and WITHOUT[name] in found.reason
    else:
        (candidate,) = found.candidates
        assert found.matched and abs(memory(candidate.layers[1]) / 4096 - 1) <= 0.05
        assert candidate.layers[0] == FRONT and candidate.cost.memory_bytes == memory(candidate.layers[1])


SQUARE = (
    *("linear", "lightning", "simple_gla", "gla", "mlstm", "retnet", "rwkv6", "rwkv7", "mamba2"),
    *("deltanet", "gated_deltanet", "gated_deltaproduct", "kda", "comba"),
)


@pytest.mark.parametrize("name", SQUARE)
def test_a_matrix_of_4_kib_is_one_head_of_32_x_32(name):
    spec = size(FRONT, name).candidates[0].layers[1]
    heads, k, v = nnx.eval_shape(lambda: mixers.create(spec, 64, rngs=nnx.Rngs(0)).init_state(1)).matrix.shape[1:]
    assert heads == 1 and {k, v} <= {31, 32, 33}


def test_memory_counts_neither_tails_nor_counters():
    deltanet = nnx.eval_shape(lambda: mixers.create("deltanet(heads=1, expand_k=0.5, expand_v=0.5)", 64, rngs=nnx.Rngs(0)))
    assert mixers.memory_bytes(deltanet) == 4 * 32 * 32
    assert mixers.state_bytes(deltanet) == 4 * 32 * 32 + 4 * 3 * (32 + 32 + 32) + 4
    softmax = nnx.eval_shape(lambda: mixers.create("softmax(heads=2)", 64, rngs=nnx.Rngs(0)))
    assert mixers.memory_bytes(softmax, 100) == 4 * 100 * 2 * 64


@pytest.mark.parametrize("model", [MODEL, MODEL.model_copy(update={"channel": "swiglu", "depth": 5, "tie_embeddings": True})])
def test_the_cost_of_a_model_is_the_sum_of_its_parts(model):
    layers = (FRONT, "lightning", "softmax(heads=2)")
    whole = nnx.eval_shape(
        lambda: LanguageModel(VOCABULARY, **model.model_dump(exclude={"init_from", "layers"}), layers=layers, rngs=nnx.Rngs(0))
    )
    cost = sizing.model_cost(model, layers, VOCABULARY, LENGTH)
    count = params.count(params.split(whole)[1])
    assert cost._replace(memory_bytes=0) == Cost(count, 0, mixers.state_bytes(whole, LENGTH), whole.flops(1, LENGTH))


@pytest.mark.parametrize(("measure", "budget"), [("parameters", 70_000), ("flops", 12_000_000)])
@pytest.mark.parametrize("name", ["softmax", "gla", "mamba"])
def test_parameters_and_flops_of_the_whole_model_are_matched(name, measure, budget):
    (candidate,) = size(FRONT, name, measure=measure, budget=budget).candidates
    settings = MODEL.model_dump(exclude={"init_from", "layers"})
    whole = nnx.eval_shape(lambda: LanguageModel(VOCABULARY, **settings, layers=candidate.layers, rngs=nnx.Rngs(0)))
    found = params.count(params.split(whole)[1]) if measure == "parameters" else whole.flops(1, LENGTH)
    assert abs(found / budget - 1) <= 0.05 and candidate.cost.of(measure) == found


def test_up_to_three_shapes_are_kept_in_the_order_of_preference():
    heads = [(settings(each)["heads"], settings(each)["expand_v"]) for each in size(FRONT, "gla", most=3).candidates]
    assert heads == [(1, 0.5), (1, 0.72), (2, 0.72)]
    assert len(size(FRONT, "gla", most=2).candidates) == 2


def test_settings_that_are_given_stay_and_shapes_that_contradict_them_are_dropped():
    four = size("gla(heads=4, gate_rank=8)", most=3, model=MODEL.model_copy(update={"depth": 1})).candidates
    assert [settings(each) for each in four] == [{"heads": 4, "gate_rank": 8, "expand_k": 1.0, "expand_v": 1.0}]
    wide = size(FRONT, "gla(expand_v=1.0)").candidates[0]
    assert settings(wide) == {"heads": 1, "expand_v": 1.0, "expand_k": 0.25}


def test_a_mixer_whose_settings_are_given_stays_as_it_is_and_says_if_it_is_not_matched():
    exact, other = "gla(heads=4, expand_k=1.0, expand_v=1.0)", "gla(heads=4, expand_k=0.5, expand_v=1.0)"
    assert (size(FRONT, exact).candidates[0].layers, size(FRONT, exact).matched) == ((FRONT, exact), True)
    found = size(FRONT, other)
    assert (found.candidates[0].layers, found.matched) == ((FRONT, other), False)
    assert found.reason == "its settings are given, with 2,048 bytes of recurrent memory"
    assert not size(FRONT, "softmax(heads=1, rope_theta=None)").matched
    assert not size(FRONT, "aaren").candidates and size(FRONT, "aaren(heads=2)").candidates, "an anchor gives its settings"


def test_three_dots_ask_for_a_setting_to_be_solved():
    assert settings(size(FRONT, "softmax(window=...)").candidates[0]) == {"window": 8}
    assert settings(size(FRONT, "gla(heads=2, expand_k=...)").candidates[0]) == {"heads": 2, "expand_k": 0.5}
    with pytest.raises(SpecError, match=r"has no setting 'windw'\. Did you mean 'window'"):
        size(FRONT, "softmax(windw=...)")


def test_a_budget_is_that_of_all_layers_together():
    four = size("gla", budget=16_384, model=MODEL.model_copy(update={"depth": 4}))
    assert settings(four.candidates[0])["expand_k"] == 0.5
    mixed = size("gla", "mamba", "gla", "mamba", budget=16_384, model=MODEL.model_copy(update={"depth": 4}), most=3)
    assert [each.layers[0] == each.layers[2] for each in mixed.candidates] == [True] * 3
    assert all(abs(each.cost.memory_bytes / 16_384 - 1) <= 0.05 for each in mixed.candidates)


@pytest.mark.parametrize(
    ("layers", "measure", "budget", "says"),
    [
        ((FRONT, "gla"), "parameters", 30_000, "the rest of the model has 37,376 parameters already"),
        ((FRONT, "min_gru"), "state_bytes", 8192, "min_gru(expand=16.0) is nearest, with 4,096 of 8,192"),
        ((FRONT, "hgrn2"), "state_bytes", 3000, "hgrn2(heads=4) is nearest, with 4,096 of 3,000"),
        ((FRONT, "s4d"), "parameters", 90_000, "s4d declares no shape for a budget of parameters"),
    ],
)
def test_the_reason_is_one_line_with_what_is_nearest(layers, measure, budget, says):
    found = size(*layers, measure=measure, budget=budget)
    assert found.candidates == () and found.reason.startswith(says) and "\n" not in found.reason


@pytest.mark.parametrize("target", [1, 7, 999, 1024, 1500, 40_000, 10**7])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_nearest_width_is_found_in_a_few_evaluations(power, target):
    seen = []
    measure = lambda w: 8 * w**power + 3 * w + 1
    off = lambda w: max(measure(w) / target, target / measure(w))
    found = sizing.nearest_width(lambda w: seen.append(w) or measure(w), target, 500)
    assert off(found) <= 1.01 * min(map(off, range(1, 501))) and len(seen) <= 12
