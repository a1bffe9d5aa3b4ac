"""Layers of released hybrids that go beyond the plain mixers, against formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.published import B, D, T, affine, built, rms_norm, sigmoid, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers


def causal_softmax(s):
    weights = np.exp(np.where(np.tril(np.ones((T, T))) > 0, s - s.max(-1, keepdims=True), -np.inf))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("settings", ["", "joint_qk_norm=True, ", "joint_qk_norm=True, output_gate=True, bias=True, "])
def test_softmax_norms_heads_alone_or_together_and_gates_what_it_gives(settings):
    mixer, x, y = built(f"softmax(heads=4, kv_heads=2, rope_theta=None, qk_norm='rms', {settings}qk_norm_eps=0.01)")
    q, k, v = (affine(p, x) for p in (mixer.q, mixer.k, mixer.v))
    norm = lambda name, x: rms_norm(x, wide(getattr(mixer, f"{name}_norm").scale), 0.01)
    if "joint" in settings:
        q, k = (split(norm(*pair), heads) for *pair, heads in (("q", q, 4), ("k", k, 2)))
    else:
        q, k = (norm(name, split(x, heads)) for name, x, heads in (("q", q, 4), ("k", k, 2)))
    k, v = (np.repeat(x, 2, axis=2) for x in (k, split(v, 2)))
    weights = causal_softmax(np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(D // 4))
    o = np.einsum("bhts,bshv->bthv", weights, v).reshape(B, T, D)
    assert_close(y, affine(mixer.out, o * sigmoid(affine(mixer.gate, x)) if "gate" in settings else o))


@pytest.mark.parametrize(
    "settings", ["scale=0.3", "value_dim=12", "kv_heads=1, value_heads=2, value_dim=6, head_dim=4, output_gate=True, scale=1.5"]
)
def test_softmax_has_a_scale_and_values_of_their_own_number_and_width(settings):
    """DiffQKV is the case of fewer key heads than value heads."""
    mixer, x, y = built(f"softmax(heads=4, rope_theta=None, {settings})")
    given = dict(part.split("=") for part in settings.split(", "))
    width, scale = int(given.get("head_dim", D // 4)), float(given.get("scale", (D // 4) ** -0.5))
    keys = int(given.get("kv_heads", 4))
    values, value_dim = int(given.get("value_heads", keys)), int(given.get("value_dim", width))
    q, k, v = (split(affine(p, x), heads) for p, heads in ((mixer.q, 4), (mixer.k, keys), (mixer.v, values)))
    assert (q.shape[3], k.shape[3], v.shape[3]) == (width, width, value_dim)
    k, v = np.repeat(k, 4 // keys, axis=2), np.repeat(v, 4 // values, axis=2)
    o = np.einsum("bhts,bshv->bthv", causal_softmax(scale * np.einsum("bthk,bshk->bhts", q, k)), v).reshape(B, T, 4 * value_dim)
    assert_close(y, affine(mixer.out, o * sigmoid(affine(mixer.gate, x)) if "gate" in settings else o))
    state = mixer.init_state(3, 10)
    assert state.cache.keys.shape == (3, 10, keys, width) and state.cache.values.shape == (3, 10, values, value_dim)
    matmul = 2 * 3 * 10 * sum(p.w[...].size for p in (mixer.q, mixer.k, mixer.v, mixer.out, mixer.gate) if p is not None)
    assert mixer.flops(3, 10) == matmul + 3 * 55 * 2 * 4 * (width + value_dim)


def test_value_heads_divide_the_query_heads():
    with pytest.raises(ValueError, match="value_heads=3 does not divide heads=4: set value_heads to a divisor"):
        mixers.create("softmax(value_heads=3)", 16, rngs=nnx.Rngs(0))


def test_a_joint_norm_needs_a_norm():
    with pytest.raises(ValueError, match="joint_qk_norm=True needs a norm: set qk_norm"):
        mixers.create("softmax(joint_qk_norm=True)", 16, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("key_heads", "heads"), [(1, 4), (2, 4), (2, 6)])
def test_heads_that_share_a_key_equal_heads_with_copies_of_the_key(key_heads, heads):
    """Memory i of h has the key of head i key_heads / h, rounded down."""
    spec = f"gated_deltanet(heads={heads}, key_heads={key_heads}, expand_k={key_heads / 4}, expand_v={heads / 4})"
    shared = mixers.create(spec, 32, rngs=nnx.Rngs(0))
    full = mixers.create(f"gated_deltanet(heads={heads}, expand_k={heads / 4}, expand_v={heads / 4})", 32, rngs=nnx.Rngs(1))

    def copied(w):
        by_head = w.reshape(len(w), key_heads, -1)
        return jnp.repeat(by_head, heads // key_heads, axis=1).reshape(len(w), -1)

    for name in ("q", "k"):
        for part in (name, f"{name}_convolution"):
            getattr(full, part).w[...] = copied(getattr(shared, part).w[...])
    for name in ("v", "v_convolution", "beta", "decay_in", "decay", "gate", "norm", "out"):
        setattr(full, name, getattr(shared, name))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 32)), jnp.float32)
    run = jax.jit(lambda mixer, x: mixer(x, state=mixer.init_state(2)))
    (got, state), (wanted, wanted_state) = run(shared, x), run(full, x)
    assert_close((got, state.matrix, state.v_tail), (wanted, wanted_state.matrix, wanted_state.v_tail))
    assert state.k_tail.shape == (2, 3, 8 * key_heads)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("heads=4, key_heads=3", "key_heads=3 does not divide heads=4: set key_heads to a divisor"),
        ("heads=4, key_heads=0", "key_heads=0, wanted int in"),
        ("heads=3, expand_k=1, expand_v=1", "heads=3 does not divide key width 32 and value width 32"),
        ("heads=6, key_heads=2, expand_v=1", "key_heads=2 and heads=6 do not divide key width 24 and value width 32"),
    ],
)
def test_heads_that_do_not_fit_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(f"gated_deltanet({settings})", 32, rngs=nnx.Rngs(0))
