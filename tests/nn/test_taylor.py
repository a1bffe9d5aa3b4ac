"""The Taylor feature map against the series that defines it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import RELATIVE, assert_close
from seqzoo.nn import taylor_feature_dim, taylor_features


def series(s, order=2):
    """exp's series, cut."""
    return sum(s**n / math.factorial(n) for n in range(order + 1))


@pytest.mark.parametrize("f", [1, 2, 3, 8, 16])
def test_inner_products_are_the_series_of_the_exponential(f):
    noise = np.random.default_rng(f)
    q, k = noise.standard_normal((2, 7, 5, f))
    with jax.enable_x64(True):
        product = jnp.einsum("abi,abi->ab", taylor_features(jnp.asarray(q)), taylor_features(jnp.asarray(k)))
        assert product.dtype == jnp.float64
        assert_close(np.asarray(product), series((q * k).sum(-1) / math.sqrt(f)), tolerance=RELATIVE["float64"])


@pytest.mark.parametrize("f", [1, 2, 8, 16])
def test_it_has_as_many_features_as_there_are_products_of_at_most_two_numbers(f):
    products = {()} | {(i,) for i in range(f)} | {(i, j) for i in range(f) for j in range(i, f)}
    assert taylor_features(jnp.ones((2, f))).shape == (2, len(products)) and taylor_feature_dim(f) == len(products)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_stays(dtype):
    assert taylor_features(jnp.ones((3, 4), dtype)).dtype == dtype
