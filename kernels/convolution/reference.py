"""Definition of the short convolution: one token at a time, with the tail (the last width - 1 tokens) as the state."""

import jax.numpy as jnp
from jax import Array, lax


def scan(x: Array, weight: Array, bias: Array, tail: Array, real: Array, start: Array) -> tuple[Array, Array]:
    """Computes y_t = bias + sum_i weight[i] * [tail, x_t][i]; x [b, t, d], tail [b, width - 1, d], real and start [b, t] bool.

    Returns (y [b, t, d], tail), both in the dtype given. A start zeroes the tail before its token; padding does not change it.
    """

    def step(tail, inputs):
        x_bd, real_b, start_b = inputs
        previous = jnp.where(start_b[:, None, None], jnp.zeros_like(tail), tail)
        window = jnp.concatenate([previous, x_bd[:, None]], axis=1)
        y = bias[None] + jnp.sum(weight[None] * window, axis=1)
        y = jnp.where(real_b[:, None], y, jnp.zeros_like(y))
        return jnp.where(real_b[:, None, None], window[:, 1:], tail), y

    tail, y = lax.scan(step, tail, (jnp.moveaxis(x, 1, 0), real.T, start.T))
    return jnp.moveaxis(y, 0, 1), tail
