"""The definition of the short convolution: one token at a time, the tail carried along."""

import jax.numpy as jnp
from jax import Array, lax


def scan(x: Array, weight: Array, bias: Array, tail: Array, real: Array, start: Array) -> tuple[Array, Array]:
    """y_t = bias + sum_i weight[i] * [tail, x_t][i]; x [b, t, d], tail [b, width - 1, d], real and start [b, t] bool.

    Returns (y [b, t, d], tail), both in the dtype given. A start empties the tail before its token; padding leaves it as it was.
    """

    def step(tail, inputs):
        x_bd, real_b, start_b = inputs
        kept = jnp.where(start_b[:, None, None], jnp.zeros_like(tail), tail)
        window = jnp.concatenate([kept, x_bd[:, None]], axis=1)
        y = bias[None] + jnp.sum(weight[None] * window, axis=1)
        y = jnp.where(real_b[:, None], y, jnp.zeros_like(y))
        return jnp.where(real_b[:, None, None], window[:, 1:], tail), y

    tail, y = lax.scan(step, tail, (jnp.moveaxis(x, 1, 0), real.T, start.T))
    return jnp.moveaxis(y, 0, 1), tail
