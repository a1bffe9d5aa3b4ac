"""Our ops against the step-by-step loops of flash-linear-attention: values, final states and gradients to all inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import comparing
from helpers.tolerances import error, rms
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_product, delta_rule
from seqzoo.kernels.linear_recurrence import linear_recurrence

pytestmark = pytest.mark.oracle

B, T, H, K, V = 2, 75, 3, 8, 12
VIOLENT = [0.0, -20.0, -100.0, -1e4, -1e6, -np.inf]  # log decays at every 17th token; those between are mild


def draw(gate=None, violent=None, **shapes):
    """Normal float32 arrays of these shapes; `gate` names the log decay, uniform in [-0.5, 0] but for every 17th token."""
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    if gate is not None:
        arrays[gate] = -random.uniform(0, 0.5, shapes[gate])
        if violent is not None:
            arrays[gate][:, 3::17] = violent
    return {name: x.astype(np.float32) for name, x in arrays.items()}


ATTENTION = {"q": (B, T, H, K), "k": (B, T, H, K), "v": (B, T, H, V)}
STATE = {"initial_state": (B, H, K, V)}


def heads_first(x):
    """[b, t, h, d] <-> [b, h, t, d] of a tensor."""
    return x.transpose(1, 2)


def test_without_decay_it_is_linear_attention(torch, fla):
    arrays = draw(**ATTENTION, **STATE)
    peer = fla("linear_attn/naive").naive_recurrent_linear_attn
    wanted = comparing.theirs(torch, lambda **x: peer(**x, output_final_state=True), arrays)
    comparing.assert_equal(comparing.ours(linear_attention, arrays), wanted)


def gated(fla, form):
    """(fla's loop for one gate per head, or per head and channel; the gate's shape)."""
    if form == "head":
        peer, shape = fla("simple_gla/naive").naive_recurrent_simple_gla, (B, T, H)
        return lambda log_decay, **x: peer(g=log_decay, output_final_state=True, **x), shape
    peer, shape = fla("gla/naive").naive_recurrent_gla, (B, T, H, K)
    return lambda log_decay, **x: peer(gk=log_decay, output_final_state=True, **x), shape


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
@pytest.mark.parametrize("form", ["head", "channel"])
def test_with_a_gate_it_is_gated_linear_attention(torch, fla, form, implementation):
    peer, gate = gated(fla, form)
    ours = lambda **x: linear_attention(**x, implementation=implementation)
    mild = None
    for violent in (None, *VIOLENT):
        arrays = draw("log_decay", violent, **ATTENTION, **STATE, log_decay=gate)
        wanted = comparing.theirs(torch, peer, arrays)
        mild = wanted if mild is None else mild
        comparing.assert_equal(comparing.ours(ours, arrays), wanted, mild=mild, what=f"every 17th log decay {violent}:")


def test_with_a_fixed_decay_per_head_it_is_retention(torch, fla):
    arrays = draw(**ATTENTION)
    peer = fla("retention/naive").naive_retention
    decay = np.log1p(-(2.0 ** (-5 - np.arange(H)))).astype(np.float32)

    def theirs(**x):
        return heads_first(peer(**{name: heads_first(value) for name, value in x.items()})), None

    ours = lambda **x: (linear_attention(**x, log_decay=jnp.asarray(decay))[0], None)
    comparing.assert_equal(comparing.ours(ours, arrays), comparing.theirs(torch, theirs, arrays))


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_elementwise_it_is_the_recurrence_of_hgrn(torch, fla, implementation):
    peer = fla("hgrn/naive").naive_recurrent_hgrn
    ours = lambda x, g, **state: linear_recurrence(jnp.exp(g), x, **state, implementation=implementation)
    mild = None
    for violent in (None, *VIOLENT):
        arrays = draw("g", violent, x=(B, T, K), g=(B, T, K), initial_state=(B, K))
        wanted = comparing.theirs(torch, lambda **x: peer(**x, output_final_state=True), arrays)
        mild = wanted if mild is None else mild
        comparing.assert_equal(comparing.ours(ours, arrays), wanted, mild=mild, what=f"every 17th log decay {violent}:")


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_read_before_the_write_and_with_a_bonus_it_is_rwkv6(torch, fla, implementation):
    peer = fla("rwkv6/recurrent_naive").naive_recurrent_rwkv6
    ours = lambda **x: linear_attention(**x, read_before_write=True, implementation=implementation)

    def theirs(bonus, initial_state, **x):
        q, k, v, w = (heads_first(x[name]) for name in ("q", "k", "v", "log_decay"))
        o, last = peer(q, k, v, w, bonus, initial_state=initial_state, output_final_state=True)
        return heads_first(o), last

    mild = None
    for violent in (None, *VIOLENT):
        arrays = draw("log_decay", violent, **ATTENTION, **STATE, log_decay=(B, T, H, K), bonus=(H, K))
        wanted = comparing.theirs(torch, theirs, arrays)
        mild = wanted if mild is None else mild
        comparing.assert_equal(comparing.ours(ours, arrays), wanted, mild=mild, what=f"every 17th log decay {violent}:")


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_twice_with_the_decay_on_values_and_on_keys_it_is_gated_slot_attention(torch, fla, implementation):
    peer, slots = fla("gsa/naive").naive_recurrent_gsa, 6

    def ours(q, k, v, s, g, keys, values):
        settings = {"implementation": implementation}
        scores, keys = linear_attention(q, k, s, value_log_decay=g, initial_state=keys, **settings)
        weights = jax.nn.softmax(scores, axis=-1)
        o, values = linear_attention(weights, s, v, log_decay=g, scale=1.0, initial_state=values, **settings)
        return o, keys, values

    def theirs(keys, values, **x):
        o, last = peer(**x, initial_state=(keys, values), output_final_state=True)
        return o, *last

    mild = None
    for violent in (None, *VIOLENT):
        shapes = {"s": (B, T, H, slots), "g": (B, T, H, slots), "keys": (B, H, K, slots), "values": (B, H, slots, V)}
        arrays = draw("g", violent, **ATTENTION, **shapes)
        wanted = comparing.theirs(torch, theirs, arrays)
        mild = wanted if mild is None else mild
        comparing.assert_equal(comparing.ours(ours, arrays), wanted, mild=mild, what=f"every 17th log decay {violent}:")


def bounded(violent=None, keys=("k",), **shapes):
    """As `draw`, what delta rules need for a memory that stays bounded: `keys` of unit length, beta between 0 and 2."""
    arrays = draw("log_decay" if "log_decay" in shapes else None, violent, **shapes)
    arrays |= {name: arrays[name] / np.linalg.norm(arrays[name], axis=-1, keepdims=True) for name in keys}
    return arrays | {"beta": np.random.default_rng(1).uniform(0, 2, shapes["beta"]).astype(np.float32)}


def assert_theirs_at_any_decay(torch, ours, theirs, **settings):
    mild = None
    for violent in (None, *VIOLENT):
        arrays = bounded(violent, **settings)
        wanted = comparing.theirs(torch, theirs, arrays)
        mild = wanted if mild is None else mild
        comparing.assert_equal(comparing.ours(ours, arrays), wanted, mild=mild, what=f"every 17th log decay {violent}:")


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_the_delta_rule_without_a_decay_is_deltanet(torch, fla, implementation):
    peer = fla("delta_rule/naive").delta_rule_recurrence
    arrays = bounded(**ATTENTION, **STATE, beta=(B, T, H))

    def theirs(initial_state, **x):
        q, k, v, beta = (heads_first(x[name]) for name in ("q", "k", "v", "beta"))
        o, last = peer(q, k, v, beta, initial_state=initial_state)
        return heads_first(o), last

    ours = lambda **x: delta_rule(**x, implementation=implementation)
    comparing.assert_equal(comparing.ours(ours, arrays), comparing.theirs(torch, theirs, arrays))


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
@pytest.mark.parametrize(
    ("module", "name", "gate"),
    [
        ("gated_delta_rule/naive", "naive_recurrent_gated_delta_rule", (B, T, H)),
        ("kda/naive", "naive_recurrent_kda", (B, T, H, K)),
    ],
)
def test_the_delta_rule_with_a_decay_is_gated_deltanet_and_by_channel_kda(torch, fla, module, name, gate, implementation):
    peer = getattr(fla(module), name)
    theirs = lambda beta, log_decay, **x: peer(beta=beta, g=log_decay, output_final_state=True, **x)
    ours = lambda **x: delta_rule(**x, implementation=implementation)
    assert_theirs_at_any_decay(torch, ours, theirs, **ATTENTION, **STATE, beta=(B, T, H), log_decay=gate)


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_the_delta_rule_on_what_was_there_before_the_decay_is_comba(torch, fla, implementation):
    """Mild decays: their chunked loop is the only sound one, and its gradients are NaN at strong ones."""
    peer = fla("comba/naive").naive_chunk_comba
    arrays = bounded(keys=("k", "p"), **ATTENTION, **STATE, p=(B, T, H, K), beta=(B, T, H), log_decay=(B, T, H))
    theirs = lambda beta, log_decay, **x: peer(beta=beta, g=log_decay, output_final_state=True, **x)
    ours = lambda p, **x: delta_rule(**x, undecayed=p, implementation=implementation)
    comparing.assert_equal(comparing.ours(ours, arrays), comparing.theirs(torch, theirs, arrays))


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_with_a_decay_a_removal_and_a_write_per_channel_it_is_the_recurrence_of_rwkv7(torch, fla, implementation):
    peer = fla("generalized_delta_rule/dplr/naive").dplr_recurrence

    def ours(removed, beta, **x):
        return linear_attention(**x, a=-removed, b=beta * removed, implementation=implementation)

    def theirs(initial_state, **x):
        names = ("q", "k", "v", "removed", "beta", "log_decay")
        q, k, v, removed, beta, gk = (heads_first(x[name]) for name in names)
        o, last = peer(q, k, v, -removed, beta * removed, gk, initial_state=initial_state)
        return heads_first(o), last

    channels = {name: (B, T, H, K) for name in ("removed", "beta", "log_decay")}
    assert_theirs_at_any_decay(torch, ours, theirs, keys=("removed",), **ATTENTION, **STATE, **channels)


@pytest.mark.parametrize("implementation", ["recurrent", "chunkwise"])
def test_several_steps_of_the_delta_rule_are_gated_deltaproduct(torch, fla, implementation):
    peer, steps = fla("gated_delta_product/naive").naive_recurrent_gated_delta_product, 3
    ours = lambda **x: delta_product(**x, implementation=implementation)

    def theirs(q, k, v, beta, log_decay, initial_state):
        k, v, beta = (x.flatten(1, 2) for x in (k, v, beta))
        return peer(q, k, v, log_decay, beta, K**-0.5, initial_state=initial_state, num_householder=steps)

    shapes = {"q": (B, T, H, K), "k": (B, T, steps, H, K), "v": (B, T, steps, H, V), "beta": (B, T, steps, H)}
    assert_theirs_at_any_decay(torch, ours, theirs, **shapes, **STATE, log_decay=(B, T, H))


@pytest.mark.parametrize("violent", [-1e6, -np.inf])
def test_ours_is_exact_where_a_difference_of_cumulative_sums_fails(torch, fla, violent):
    """The usual chunked form takes decays as exp(G_i - G_j) of one running sum G; a hard reset in a chunk costs it its digits."""
    arrays = draw("g", violent, **ATTENTION, g=(B, T, H))
    module = fla("simple_gla/naive")
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    definition = module.naive_recurrent_simple_gla(**tensors)[0].numpy()
    chunks = module.naive_chunk_simple_gla(**tensors)[0].numpy()
    got, _ = linear_attention(arrays["q"], arrays["k"], arrays["v"], log_decay=arrays["g"], implementation="chunkwise")
    assert error(got, definition) < 1e-6
    assert error(chunks, definition) > 1e-2  # infinite at -inf: NaN
    assert rms(definition) > 0.1


def test_after_a_reset_transformers_mamba2_loses_digits_and_ours_does_not(torch, fla):
    """There a state is carried over a chunk as exp(G_end - G_i); the step size is the logarithm of the decay, and what is written
    is divided by it beforehand, so that the reset is all that is violent."""
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    arrays = draw("g", -1e6, **ATTENTION, g=(B, T, H))
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    definition = fla("simple_gla/naive").naive_recurrent_simple_gla(**tensors, scale=1.0)[0].numpy()
    dt = -tensors["g"]
    values = tensors["v"] / dt[..., None]
    theirs = mamba2_chunk_scan(values, dt, -torch.ones(H), tensors["k"], tensors["q"], chunk_size=16).numpy()
    q, k, v, g = (arrays[name] for name in "qkvg")
    for implementation in ("recurrent", "chunkwise"):
        assert error(linear_attention(q, k, v, log_decay=g, scale=1.0, implementation=implementation)[0], definition) < 1e-6
    assert error(theirs, definition) > 1e-3
