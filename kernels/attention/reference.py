"""Attention by its definition: the whole matrix of scores. Differentiated by JAX.

Cost: O(b h t s) time and memory. For few queries over many keys, as in decoding, it is also fast: it reads each cached key once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.attention.pairs import Settings, Tokens, dropout_mask, visible
from seqzoo.kernels.common.implementations import state_dtype


def dot_products(q: Array, k: Array, dtype: Any) -> Array:
    """[b, h, t, s]: the dot products of q [b, t, h, k] and k [b, s, hk, k]."""
    b, t, h, width = q.shape
    grouped = q.reshape(b, t, k.shape[2], h // k.shape[2], width)
    return jnp.einsum("btigk,bsik->bigts", grouped, k, preferred_element_type=dtype).reshape(b, h, t, k.shape[1])


def weighted_sums(w: Array, v: Array, dtype: Any) -> Array:
    """[b, t, h, v]: the sums of v [b, s, hv, v] with weights w [b, h, t, s]."""
    b, h, t, _ = w.shape
    grouped = w.astype(v.dtype).reshape(b, v.shape[2], h // v.shape[2], t, v.shape[1])
    return jnp.einsum("bigts,bsiv->btigv", grouped, v, preferred_element_type=dtype).reshape(b, t, h, v.shape[3])


def attend(
    settings: Settings,
    q: Array,
    kv_sets: list[tuple[Array, Array, Tokens]],
    queries: Tokens,
    random_bits: Array | None,
    *,
    dot_products: Callable = dot_products,
    weighted_sums: Callable = weighted_sums,
) -> Array:
    """Computes o [b, t, h, v] in q's dtype: every query over the keys and values of all sets, the cache's and the call's own."""
    dtype = state_dtype(q)
    keys = Tokens(*(jnp.concatenate(leaves, axis=1) for leaves in zip(*(tokens for _, _, tokens in kv_sets), strict=True)))
    mask = visible(settings, queries, keys)
    scores = jnp.concatenate([dot_products(q, k, dtype) for k, _, _ in kv_sets], axis=-1) * settings.scale
    if settings.scores == "softmax":
        scores = jnp.where(mask, scores, -jnp.inf)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        largest = jax.lax.stop_gradient(jnp.where(largest == -jnp.inf, 0, largest))
        weights = jnp.exp(scores - largest)
        denominator = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.where(denominator == 0, 1, denominator)
    else:
        weights = jax.nn.sigmoid(scores + settings.bias)
    weights = jnp.where(mask, weights, 0)
    if random_bits is not None:
        weights = weights * dropout_mask(settings, random_bits, keys)
    ends = [0]
    for k, _, _ in kv_sets:
        ends.append(ends[-1] + k.shape[1])
    parts = [weighted_sums(weights[..., a:z], v, dtype) for a, z, (_, v, _) in zip(ends, ends[1:], kv_sets, strict=False)]
    return sum(parts[1:], parts[0]).astype(q.dtype)
