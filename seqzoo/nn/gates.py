"""Gates of recurrent mixers, computed in float32 or wider: a state is a product of many of them."""

import jax
import jax.numpy as jnp
from jax import Array


def complementary(x: Array) -> tuple[Array, Array]:
    """(sigmoid(x), 1 - sigmoid(x)), without cancellation in values and gradients: neither is computed as a difference.

    Args:
      x: [...] float.
    Returns:
      Two [...], float32 or wider.
    """
    return _complementary(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


@jax.custom_jvp
def _complementary(x):
    return jax.nn.sigmoid(x), jax.nn.sigmoid(-x)


@_complementary.defjvp
def _complementary_jvp(primals, tangents):
    gate, complement = _complementary(*primals)
    slope = gate * complement * tangents[0]  # jax.nn.sigmoid's own is s (1 - s), whose difference loses digits where s is near 1
    return (gate, complement), (slope, -slope)


def positive(x: Array) -> Array:
    """x + 1/2 for x >= 0, sigmoid(x) below: always positive, and continuous.

    The activation g of Feng et al. 2024, arXiv:2410.01201, appendix B, where candidates must be positive to have a logarithm.

    Args:
      x: [...] float.
    Returns:
      [...] in x's dtype.
    """
    return jnp.where(x >= 0, x + 0.5, jax.nn.sigmoid(x))


def normalised_gates(x: Array, y: Array) -> tuple[Array, Array]:
    """(f / (f + i), i / (f + i)) for f = sigmoid(x) and i = sigmoid(y): two gates scaled to add up to one.

    The ratio f / i is computed from logarithms, so that two gates near 0 give an exact ratio instead of 0 / 0.

    Args:
      x, y: [...] float, of one shape.
    Returns:
      Two [...], float32 or wider.
    """
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    return complementary(jax.nn.log_sigmoid(x.astype(wide)) - jax.nn.log_sigmoid(y.astype(wide)))


@jax.custom_jvp
def tanh(x: Array) -> Array:
    """tanh(x), whose derivative keeps its digits where the gate is saturated: JAX's 1 - tanh(x)^2 is a difference."""
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals, tangents):
    return tanh(*primals), 4 * jax.nn.sigmoid(2 * primals[0]) * jax.nn.sigmoid(-2 * primals[0]) * tangents[0]


@jax.custom_jvp
def softmax(x: Array) -> Array:
    """Softmax over the last axis, whose derivative keeps its digits where one weight is near 1.

    With p the weights and m the largest, dp = p (c - sum p c) for c = dx - dx_m. Without that subtraction, which changes nothing in
    exact arithmetic, the parenthesis is a difference of nearly equal numbers at m.
    """
    return jax.nn.softmax(x, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    weights, (change,) = softmax(*primals), tangents
    change = change - jnp.take_along_axis(change, jnp.argmax(weights, axis=-1, keepdims=True), axis=-1)
    return weights, weights * (change - jnp.sum(weights * change, axis=-1, keepdims=True))


def exponential_linear(x: Array) -> Array:
    """elu(x) + 1: x + 1 for x > 0, exp(x) below, where the difference of elu and -1 would have no digits left."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))
