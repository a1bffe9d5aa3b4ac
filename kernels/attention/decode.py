"""Attention by its definition without transposing the cache: for decoding, a few queries after many cached keys, on CPUs.

The cache of a row is one matrix [s, hk k]. XLA:CPU transposes it before a product per head, which costs more than the product. Here
a query stands in the channels of its key head, with zeros in those of the others (a block-diagonal matrix of queries), and is
multiplied by all channels; of the products with the values each head keeps its own channels.
Cost: O(b h t s (hk k + hv v)) time, that is hk (hv) times the multiplications; O(b h t s) memory.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.kernels.attention import reference


def dot_products(q: Array, k: Array, dtype: Any) -> Array:
    """[b, h, t, s]: the dot products of q [b, t, h, k] and k [b, s, hk, k]."""
    b, t, h, _ = q.shape
    block_diagonal = jnp.moveaxis(_mask_other_heads(q[:, :, :, None], k.shape[2]), 1, 2).reshape(b, h * t, -1)
    return jnp.einsum("bnc,bsc->bns", block_diagonal, _join_heads(k), preferred_element_type=dtype).reshape(b, h, t, k.shape[1])


def weighted_sums(w: Array, v: Array, dtype: Any) -> Array:
    """[b, t, h, v]: the sums of v [b, s, hv, v] with weights w [b, h, t, s]."""
    b, h, t, s = w.shape
    sums = jnp.einsum("bns,bsc->bnc", w.astype(v.dtype).reshape(b, h * t, s), _join_heads(v), preferred_element_type=dtype)
    return jnp.sum(_mask_other_heads(jnp.moveaxis(sums.reshape(b, h, t, *v.shape[2:]), 1, 2), v.shape[2]), axis=3)


def _join_heads(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _mask_other_heads(x: Array, heads: int) -> Array:
    """x [b, t, h, heads or 1, d] as [b, t, h, heads, d], zero except at the key (value) head that the query head uses."""
    own = np.repeat(np.eye(heads, dtype=bool), x.shape[2] // heads, axis=0)
    return jnp.where(own[None, None, :, :, None], x, jnp.zeros_like(x))


attend = partial(reference.attend, dot_products=dot_products, weighted_sums=weighted_sums)
