"""The definition of the selective scan, one token at a time."""

import jax.numpy as jnp
from jax import Array, lax


def scan(decay_dt: Array, written: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array]:
    """h_t = exp(decay_dt_t A) h_{t-1} + written_t B_t and y_t = h_t C_t, in the dtype given.

    decay_dt, written [b, t, d]; A [d, n]; B, C [b, t, n]; initial [b, d, n]. Returns (y [b, t, d], h at the end [b, d, n]).
    """

    def step(h, inputs):
        g_bd, u_bd, b_bn, c_bn = inputs
        # dt = inf by a select, so that differentiating exp(inf * A) does not multiply inf by 0.
        never = jnp.isinf(g_bd)[:, :, None]
        decay = jnp.where(never, 0, jnp.exp(jnp.where(never, 0, g_bd[:, :, None]) * A[None]))
        h = decay * h + jnp.einsum("bd,bn->bdn", u_bd, b_bn)
        return h, jnp.einsum("bdn,bn->bd", h, c_bn)

    last, y = lax.scan(step, initial, tuple(jnp.moveaxis(x, 1, 0) for x in (decay_dt, written, B, C)))
    return jnp.moveaxis(y, 0, 1), last
