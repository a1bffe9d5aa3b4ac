"""Mixers against the formulas of their papers, written out in NumPy; the law only compares a mixer with itself."""

import jax
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from seqzoo import mixers

B, T, D = 2, 40, 32


def built(spec):
    """(a mixer, x, the mixer's output for it), every parameter perturbed so that no bias is zero."""
    mixer = mixers.create(spec, D, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0)
    mixer = jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(np.float32), mixer)
    x = noise.standard_normal((B, T, D)).astype(np.float32)
    return mixer, x.astype(np.float64), jax.jit(lambda mixer, x: mixer(x)[0])(mixer, x)


def wide(parameter):
    return np.asarray(parameter[...], np.float64)


@pytest.mark.parametrize(("heads", "f"), [(1, 8), (4, 16)])
def test_based_is_attention_with_the_exponential_cut_after_the_square(heads, f):
    """o_t = sum_{i <= t} w_ti v_i / sum_{i <= t} w_ti with w = 1 + s + s^2 / 2, s = q^T k / sqrt(f): no features."""
    mixer, x, y = built(f"based(heads={heads}, feature_width={f})")
    q, k, v = ((x @ wide(p.w)).reshape(B, T, heads, -1) for p in (mixer.q, mixer.k, mixer.v))
    s = np.einsum("bthf,bshf->bhts", q, k) / np.sqrt(f)
    weights = np.tril(1 + s + s**2 / 2)
    o = np.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdims=True), v)
    assert_close(y, o.reshape(B, T, D) @ wide(mixer.out.w))


@pytest.mark.parametrize("width", [1, 3])
def test_base_conv_is_a_convolution_times_a_projection_and_the_input(width):
    mixer, x, y = built(f"base_conv(width={width})")
    padded = np.concatenate([np.zeros((B, width - 1, D)), x], axis=1)
    taps = wide(mixer.convolution.w)  # the last one is the present token's
    convolved = sum(taps[j] * padded[:, j : j + T] for j in range(width)) + wide(mixer.convolution.b)
    assert_close(y, convolved * (x @ wide(mixer.gate.w) + wide(mixer.gate.b)) + x)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("based(heads=3)", "heads=3 does not divide d_model=32"),
        ("based(feature_width=0)", "feature_width=0: wanted at least 1"),
        ("base_conv(width=0)", "width=0: wanted at least 1 tap"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
