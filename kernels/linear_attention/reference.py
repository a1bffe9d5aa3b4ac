"""The definition, step by step, in the dtype of the state. Shapes as in `grouping.py`."""

import jax
import jax.numpy as jnp
from jax import lax

from .grouping import read, share, update


def forward(q, k, v, transition, state, *, scale, exclusive):
    """(o [b, t, h, v], last state) by a `lax.scan`, for JAX itself to differentiate. Cost: O(t k v); gradients keep every state."""

    def step(s, token):
        q_t, k_t, v_t, at_t = token
        before, (s, _) = s, update(at_t.factors(s.dtype), k_t, v_t, s)
        return s, scale * read(share(q_t, v.shape[2]), before if exclusive else s)

    inputs = jax.tree.map(lambda x: jnp.moveaxis(x.astype(state.dtype), 1, 0), (q, k, v, transition))
    last, o = lax.scan(step, state, inputs)
    return jnp.moveaxis(o, 0, 1).astype(v.dtype), last
