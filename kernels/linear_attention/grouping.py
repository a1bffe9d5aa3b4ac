"""Shapes inside this op, and how heads share queries and keys. h = n * r heads: n groups own a q and a k, each shared by r heads.

q, k [b, t, n, k];  v, o [b, t, h, v];  log_decay None, [b, t, h] (head) or [b, t, h, k] (channel);  state [b, h, k, v].
"""

import jax.numpy as jnp
from jax import Array


def split(x: Array, groups: int) -> Array:
    """[b, h, ...] -> [b, n, r, ...]."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def merge(x: Array) -> Array:
    """[b, n, r, ...] -> [b, h, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def share(x: Array, heads: int) -> Array:
    """One token's [b, n, k] -> [b, h, k]: each group's row for every head that shares it."""
    batch, groups, width = x.shape
    return merge(jnp.broadcast_to(x[:, :, None], (batch, groups, heads // groups, width)))


def over_state(decay: Array) -> Array:
    """One token's decay [b, h] or [b, h, k] with axes of size 1 up to the state's [b, h, k, v]."""
    return decay.reshape(decay.shape + (1,) * (4 - decay.ndim))
