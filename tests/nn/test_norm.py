"""Norms over the last axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import assert_close
from seqzoo.nn import LayerNorm, RMSNorm


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("size", [1e4, 1e15])
def test_a_norm_of_huge_inputs_has_the_output_and_gradient_of_its_formula(norm, size):
    """Both do not depend on the size but for a factor; the power -3/2 of a mean square leaves float32 at 1e15."""
    x, dy = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    run = lambda x: jax.vjp(norm(8, eps=1e-12), x)
    (wanted, pull), (found, pull_huge) = run(jnp.asarray(x)), run(jnp.asarray(np.float32(size) * x))
    assert_close((found, size * pull_huge(dy)[0]), (wanted, pull(dy)[0]), tolerance=1e-5)
