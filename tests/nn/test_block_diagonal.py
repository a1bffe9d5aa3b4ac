"""The block-diagonal projection is a projection with zeros off its blocks."""

import jax
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo.nn import BlockDiagonal


@pytest.mark.parametrize(("d_in", "d_out", "heads"), [(12, 12, 1), (12, 12, 4), (12, 24, 3)])
def test_each_head_sees_its_own_channels(d_in, d_out, heads):
    layer = BlockDiagonal(d_in, d_out, heads=heads, bias=True, rngs=nnx.Rngs(0))
    layer.b = nnx.Param(jax.random.normal(jax.random.key(1), (heads, d_out // heads)))
    x = np.random.default_rng(0).standard_normal((2, 5, d_in)).astype(np.float32)
    dense = scipy.linalg.block_diag(*np.asarray(layer.w[...], np.float64))
    assert dense.shape == (d_in, d_out)
    assert_close(layer(x), x @ dense + np.asarray(layer.b[...]).ravel())


def test_a_block_is_drawn_by_its_own_width():
    """The default bound is 1 / sqrt(fan_in), and a block's fan-in is its share of the width."""
    w = np.abs(BlockDiagonal(256, 256, heads=16, rngs=nnx.Rngs(0)).w[...])
    assert 0.99 / 4 < w.max() <= 1 / 4


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads=5 does not divide the widths 12 and 10"):
        BlockDiagonal(12, 10, heads=5, rngs=nnx.Rngs(0))
