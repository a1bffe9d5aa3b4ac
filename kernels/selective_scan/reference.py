"""Definition of the selective scan, one token at a time."""

import jax.numpy as jnp
from jax import Array, lax


def scan(g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array]:
    """Computes h_t = exp(g_t A) h_{t-1} + u_t B_t and y_t = h_t C_t, in the dtype given.

    g [b, t, d] is the dt of the decay (inf forgets everything), u [b, t, d] the input dt x; A [d, n]; B, C [b, t, n]; initial
    [b, d, n]. Returns (y [b, t, d], last state [b, d, n]).
    """

    def step(h, inputs):
        g_bd, u_bd, b_bn, c_bn = inputs
        # dt = inf by a select, so that differentiating exp(inf * A) does not multiply inf by 0.
        forgets = jnp.isinf(g_bd)[:, :, None]
        decay = jnp.where(forgets, 0, jnp.exp(jnp.where(forgets, 0, g_bd[:, :, None]) * A[None]))
        h = decay * jnp.where(forgets, 0, h) + jnp.einsum("bd,bn->bdn", u_bd, b_bn)
        return h, jnp.einsum("bdn,bn->bd", h, c_bn)

    last, y = lax.scan(step, initial, tuple(jnp.moveaxis(x, 1, 0) for x in (g, u, B, C)))
    return jnp.moveaxis(y, 0, 1), last
