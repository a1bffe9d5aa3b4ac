"""Definition of the linear recurrence, one token at a time."""

import jax.numpy as jnp
from jax import Array, lax


def scan(a: Array, b: Array, starts: Array, initial: Array) -> tuple[Array, Array]:
    """Computes h_t = a_t * h_{t-1} + b_t, from h = 0 where a document starts.

    a, b [b, t, d], starts [b, t] bool, initial [b, d]. Returns (h [b, t, d], last state), in the dtype given.
    """

    def step(h, inputs):
        a_t, b_t, start = inputs
        h = a_t * jnp.where(start[:, None], jnp.zeros_like(h), h) + b_t
        return h, h

    last, h = lax.scan(step, initial, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0), starts.T))
    return jnp.moveaxis(h, 0, 1), last
