"""Gated slot attention and RWKV-6 against their papers' formulas, written out in NumPy."""

import numpy as np
import pytest
from flax import nnx

from helpers.published import B, D, T, affine, built, low_rank, matrix_state, rms_norm, sigmoid, silu, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, slots=3, gate_temperature=2, scale=None"])
def test_gsa_attends_over_slots_that_are_averages(settings):
    """Slot m of a head holds, of keys and of values, sum_j w_jm x_j with w_jm = (1 - alpha_jm) prod_{l > j} alpha_lm."""
    mixer, x, y = built(f"gsa({settings})")
    heads, scale = mixer.heads, mixer.key_dim**-0.5 if mixer.scale is None else mixer.scale
    q, k, v = (split(silu(affine(p, x)), heads) for p in (mixer.q, mixer.k, mixer.v))
    alpha = sigmoid(split(affine(mixer.forget, x), heads)) ** (1 / mixer.gate_temperature)
    weights = np.zeros((T, *alpha.shape[:1], *alpha.shape[2:], T))  # [t, b, h, m, j]
    for t in range(T):
        before = weights[t - 1] * alpha[:, t, ..., None] if t else weights[0]
        weights[t] = before
        weights[t, ..., t] = 1 - alpha[:, t]
    slot_keys, slot_values = (np.einsum("tbhmj,bjhk->btmhk", weights, z) for z in (k, v))
    scores = scale * np.einsum("bthk,btmhk->bthm", q, slot_keys)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    o = np.einsum("bthm,btmhv->bthv", shares / shares.sum(-1, keepdims=True), slot_values)
    o = rms_norm(silu(o.reshape(B, T, -1)), wide(mixer.norm.scale), 1e-5)
    assert_close(y, affine(mixer.out, o))


@pytest.mark.parametrize("settings", ["", "heads=2, expand_k=0.5, expand_v=2, mix_rank=3, decay_rank=5, eps=1e-5"])
def test_rwkv6_reads_the_state_before_the_write_plus_a_bonus_of_the_present_token(settings):
    mixer, x, y = built(f"rwkv6({settings})")
    heads, rank = mixer.heads, mixer.blend.up.shape[1]
    back = np.concatenate([np.zeros((B, 1, D)), x[:, :-1]], axis=1) - x
    low = np.tanh(affine(mixer.blend.down, x + back * wide(mixer.blend.base)))
    blend = lambda i: x + back * (wide(mixer.blend.starts)[i] + low[..., i * rank : (i + 1) * rank] @ wide(mixer.blend.up)[i])
    w = split(np.exp(-np.exp(low_rank(mixer.decay, blend(0), np.tanh))), heads)
    k, v, r = (split(affine(p, blend(i)), heads) for i, p in ((1, mixer.key), (2, mixer.value), (3, mixer.receptance)))
    # What a token reads of the past: the state one token ago, so everything but the query is one token late.
    late = lambda z, first: np.concatenate([np.full_like(z[:, :1], first), z[:, :-1]], axis=1)
    o = matrix_state(r, late(k, 0), late(v, 0), late(w, 1)) + np.einsum("bthk,hk,bthk->bth", r, wide(mixer.bonus), k)[..., None] * v
    o = (o - o.mean(-1, keepdims=True)) / np.sqrt(o.var(-1, keepdims=True) + mixer.norm.eps)
    o = o.reshape(B, T, -1) * wide(mixer.norm.scale) + wide(mixer.norm.bias)
    assert_close(y, affine(mixer.out, silu(affine(mixer.gate, blend(4))) * o))


@pytest.mark.parametrize("index", [0, 2])
def test_rwkv6_starts_as_the_authors_code_does(index):
    """RWKV-LM's x060 with 3 layers: decays from exp(-exp(-6)) on, slower in upper layers; mixes, bonus and scale by layer."""
    mixer = mixers.create("rwkv6", D, depth=(index, 3), rngs=nnx.Rngs(0))
    rise, fall, n = index / 2, 1 - index / 3, np.arange(D)
    assert_close(wide(mixer.decay.bias), -6 + 5 * (n / (D - 1)) ** (0.7 + 1.3 * rise))
    assert_close(wide(mixer.bonus).ravel(), rise * (1 - n / (D - 1)) + 0.1 * ((n + 1) % 3 - 1))
    slow, fast = (1 - (n / D) ** (power * fall) for power in (1, 0.5))
    assert_close(wide(mixer.blend.starts), np.stack([slow, slow, slow - 0.3 * rise, fast, fast]))
    assert_close(wide(mixer.blend.base), slow)
    assert_close(wide(mixer.norm.scale), np.full(D, ((index + 1) / 3) ** 0.7))
    assert not np.any(mixer.out.w[...]) and not np.any(mixer.blend.down.w[...]) and not np.any(mixer.decay.down.w[...])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gsa(heads=3)", "heads=3 does not divide key width 32"),
        ("gsa(slots=0)", r"gsa: slots=0, wanted int in \[1, 65536\] or None"),
        ("gsa(gate_temperature=0)", "gsa: gate_temperature=0, wanted number > 0"),
        ("rwkv6(heads=5)", "heads=5 does not divide key width 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
