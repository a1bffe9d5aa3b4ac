"""Shapes inside this op, and how heads share queries and keys. h = n * r heads: n groups own a q and a k, each shared by r heads.

q, k [b, t, n, k];  v, o [b, t, h, v];  state [b, h, k, v];  what `Transition` holds.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Transition(NamedTuple):
    """What becomes of the state before a token writes: decays, as logarithms or as factors, plus b (a^T S). None: no such part."""

    key: Array | None = None  # [b, t, h], for all of a head, or [b, t, h, k]
    value: Array | None = None  # [b, t, h, v]; then `key` is None or [b, t, h, k]
    a: Array | None = None  # [b, t, n, k]; then `value` is None
    b: Array | None = None  # [b, t, n, k]; None beside an `a`: the token's k

    def factors(self, dtype):
        """With decays instead of their logarithms, in that dtype."""
        exp = lambda g: None if g is None else jnp.exp(g.astype(dtype))
        return self._replace(key=exp(self.key), value=exp(self.value))


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


def fade(transition: Transition, state: Array) -> Array:
    """The state after one token's decays, given as factors: key [b, h] or [b, h, k], value [b, h, v]."""
    if transition.key is not None:
        state = over_state(transition.key) * state
    return state if transition.value is None else transition.value[:, :, None] * state


def update(transition: Transition, k: Array, v: Array, state: Array) -> tuple[Array, Array | None]:
    """The state after one token, of its factors, its k [b, n, k] and its v [b, h, v]; and u [b, h, v] or None, what b writes.

    That is a^T S, or v + a^T S where k stands for b.
    """
    per_head = lambda x: share(x, v.shape[1]).astype(state.dtype)
    v, faded = v.astype(state.dtype), fade(transition, state)
    if transition.a is None:
        return faded + outer(per_head(k), v), None
    u = read(per_head(transition.a), state)
    if transition.b is None:
        u = v + u
        return faded + outer(per_head(k), u), u
    return faded + outer(per_head(k), v) + outer(per_head(transition.b), u), u


def outer(x: Array, y: Array) -> Array:
    """[b, h, k], [b, h, v] -> [b, h, k, v]."""
    return jnp.einsum("bhk,bhv->bhkv", x, y, precision=lax.Precision.HIGHEST)


def read(x: Array, state: Array) -> Array:
    """[b, h, k] by [b, h, k, v] -> [b, h, v]."""
    return jnp.einsum("bhk,bhkv->bhv", x, state, precision=lax.Precision.HIGHEST)


def read_values(x: Array, state: Array) -> Array:
    """[b, h, v] by [b, h, k, v] -> [b, h, k]."""
    return jnp.einsum("bhv,bhkv->bhk", x, state, precision=lax.Precision.HIGHEST)
