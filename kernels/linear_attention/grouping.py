"""Shapes inside this op, and how heads share queries and keys. h = n * r heads: n groups own a q and a k, each shared by r heads.

q, k [b, t, n, k];  v, o [b, t, h, v];  state [b, h, k, v];  the decays of `Decays`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Decays(NamedTuple):
    """Logarithms of what is kept of the state; None keeps all. One per head stands in `key` alone, `value` has every channel."""

    key: Array | None  # [b, t, h] or [b, t, h, k]
    value: Array | None  # [b, t, h, v]; then `key` is None or [b, t, h, k]


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


def fade(decays: Decays, state: Array) -> Array:
    """The state after one token's decays, given as factors: key [b, h] or [b, h, k], value [b, h, v]."""
    if decays.key is not None:
        state = over_state(decays.key) * state
    return state if decays.value is None else decays.value[:, :, None] * state
