"""Rotary positions: the channels that rotate and those that do not."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.nn import rotate

POSITIONS = np.arange(10, dtype=np.int32)[None]


def test_the_first_channels_turn_by_their_own_angles_and_the_rest_pass():
    x = np.random.default_rng(0).normal(size=(1, 10, 2, 8)).astype(np.float32)
    got = np.asarray(rotate(x, POSITIONS, theta=100.0, dim=4))
    np.testing.assert_array_equal(got[..., 4:], x[..., 4:])
    angles = np.exp(1j * POSITIONS[0, :, None] * 100.0 ** (-np.arange(2) / 2))[None, :, None]
    turned = (x[..., 0:2] + 1j * x[..., 2:4]) * angles
    assert_close(got[..., :4], np.concatenate([turned.real, turned.imag], axis=-1))


def test_attention_takes_the_width_and_a_bias_for_its_output_alone():
    layer = mixers.create("softmax(heads=2, rope_dim=4, out_bias=True)", 16, rngs=nnx.Rngs(0))
    assert (layer.q.b, layer.k.b, layer.v.b) == (None,) * 3 and layer.out.b.shape == (16,)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 10, 16)), jnp.float32)
    moved = layer(x, positions=POSITIONS + 5)[0]
    assert_close(moved, layer(x)[0])  # only distances count
    assert not np.allclose(layer(x, positions=2 * POSITIONS)[0], moved, atol=1e-4)


@pytest.mark.parametrize("settings", ["rope_dim=10", "rope_dim=3", "rope_dim=0", "rope_dim=4, rope_theta=None"])
def test_a_rope_dim_that_is_odd_or_too_large_or_unused_is_refused(settings):
    with pytest.raises(ValueError, match="rope_dim"):
        mixers.create(f"softmax(heads=2, {settings})", 16, rngs=nnx.Rngs(0))
