"""The definition, step by step, in the dtype of the state. Shapes as in `grouping.py`."""

import jax.numpy as jnp
from jax import lax

from .grouping import over_state, share


def forward(q, k, v, log_decay, state, *, scale):
    """(o [b, t, h, v], last state) by a `lax.scan`, for JAX itself to differentiate. Cost: O(t k v); gradients keep every state."""
    heads = v.shape[2]

    def step(s, token):
        q_t, k_t, v_t, *g_t = token
        decayed = over_state(jnp.exp(g_t[0])) * s if g_t else s
        s = decayed + jnp.einsum("bhk,bhv->bhkv", share(k_t, heads), v_t)
        return s, scale * jnp.einsum("bhk,bhkv->bhv", share(q_t, heads), s)

    inputs = [x for x in (q, k, v, log_decay) if x is not None]
    last, o = lax.scan(step, state, [jnp.moveaxis(x.astype(state.dtype), 1, 0) for x in inputs])
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), last
