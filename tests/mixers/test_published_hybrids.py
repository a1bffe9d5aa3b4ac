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
