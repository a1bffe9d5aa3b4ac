"""Definition of the linear recurrence, one token at a time."""

import jax.numpy as jnp
from jax import Array, lax


def scan(a: Array, b: Array, initial: Array) -> tuple[Array, Array]:
    """Computes h_t = a_t * h_{t-1} + b_t; a, b [b, t, d], initial [b, d]. Returns (h [b, t, d], last state), in the dtype given."""

    def step(h, inputs):
        h = inputs[0] * h + inputs[1]
        return h, h

    last, h = lax.scan(step, initial, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0)))
    return jnp.moveaxis(h, 0, 1), last
