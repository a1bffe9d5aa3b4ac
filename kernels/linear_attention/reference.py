"""The definition, step by step, in the dtype of the state. Shapes as in `grouping.py`."""

import jax
import jax.numpy as jnp
from jax import lax

from .grouping import fade, share


def forward(q, k, v, decays, state, *, scale, exclusive):
    """(o [b, t, h, v], last state) by a `lax.scan`, for JAX itself to differentiate. Cost: O(t k v); gradients keep every state."""
    heads = v.shape[2]

    def step(s, token):
        q_t, k_t, v_t, g_t = token
        before, s = s, fade(jax.tree.map(jnp.exp, g_t), s) + jnp.einsum("bhk,bhv->bhkv", share(k_t, heads), v_t)
        return s, scale * jnp.einsum("bhk,bhkv->bhv", share(q_t, heads), before if exclusive else s)

    inputs = jax.tree.map(lambda x: jnp.moveaxis(x.astype(state.dtype), 1, 0), (q, k, v, decays))
    last, o = lax.scan(step, state, inputs)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), last
