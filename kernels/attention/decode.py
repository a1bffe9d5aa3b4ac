"""Attention by its definition, for few queries: keys and values are read as they lie, and nothing of their size is made.

What a row has cached is one matrix, [s, hk k]. Products head by head make XLA on CPUs transpose it first; so a query
stands in the channels of its head, among zeros, and meets all channels. The price is hk times the multiplications.
Cost: O(b h t s (hk k + hv v)) time, O(b h t s) memory.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.kernels.attention import reference


def score(q: Array, k: Array, dtype: Any) -> Array:
    """[b, h, t, s]: the dot products of q [b, t, h, k] and k [b, s, hk, k]."""
    b, t, h, _ = q.shape
    spread = jnp.moveaxis(_own(q[:, :, :, None], k.shape[2]), 1, 2).reshape(b, h * t, -1)
    return jnp.einsum("bnc,bsc->bns", spread, _flat(k), preferred_element_type=dtype).reshape(b, h, t, k.shape[1])


def mix(w: Array, v: Array, dtype: Any) -> Array:
    """[b, t, h, v]: the sums of v [b, s, hv, v] with weights w [b, h, t, s]."""
    b, h, t, s = w.shape
    mixed = jnp.einsum("bns,bsc->bnc", w.astype(v.dtype).reshape(b, h * t, s), _flat(v), preferred_element_type=dtype)
    return jnp.sum(_own(jnp.moveaxis(mixed.reshape(b, h, t, *v.shape[2:]), 1, 2), v.shape[2]), axis=3)


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _own(x: Array, heads: int) -> Array:
    """x [b, t, h, heads or 1, d] as [b, t, h, heads, d], zero but where the head is the one that the query head reads."""
    own = np.repeat(np.eye(heads, dtype=bool), x.shape[2] // heads, axis=0)
    return jnp.where(own[None, None, :, :, None], x, jnp.zeros_like(x))


attend = partial(reference.attend, score=score, mix=mix)
