"""The definition, token by token with `lax.scan`. JAX differentiates it, in reverse and in forward mode.

    S_t = transition_t(S_{t-1}) + k_t v_t^T        o_t = scale * S_t^T q_t, or S_{t-1}^T q_t if read before the write

Computes in the state's dtype. Cost: O(t k v) time; gradients keep every state. Shapes: see `transition.py`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .transition import broadcast_heads, read_state, update_state


def forward(q, k, v, transition, state, *, scale, read_before_write, resets, output_dtype):
    """Computes (o [b, t, h, v], last state [b, h, k, v])."""

    def step(before, token):
        q_t, k_t, v_t, transition_t = token
        after, _ = update_state(transition_t.factors(state.dtype), k_t, v_t, before, resets)
        return after, scale * read_state(broadcast_heads(q_t, v.shape[2]), before if read_before_write else after, resets)

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x.astype(state.dtype), 1, 0), (q, k, v, transition))
    last, o = lax.scan(step, state, time_first)
    return jnp.moveaxis(o, 0, 1).astype(output_dtype), last
