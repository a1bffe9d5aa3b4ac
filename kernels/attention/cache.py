"""KV cache, the state of attention: keys and values of the current document, by position inside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.attention.pairs import PADDING_KEY, Tokens


class Cache(NamedTuple):
    """Keys and values of the current document. Slot of a token = its position modulo the capacity s; unused slots are 0.

    With a window the cache is a ring buffer of s >= window slots. Without one it never wraps: s is the longest document that fits.
    Bytes: b s (hk k + hv v) elements.
    """

    keys: Array  # [b, s, hk, k]
    values: Array  # [b, s, hv, v]
    length: Array  # [b] int32, real tokens of the current document so far; without a window more than s is an overflow (NaN)


def empty_cache(batch: int, capacity: int, kv_heads: int | tuple[int, int], key_width: int, value_width: int, dtype: Any) -> Cache:
    """Makes the cache of `batch` rows before their first token.

    Args:
      capacity: s, slots per row: at least the window, or without one the longest document.
      kv_heads: heads of keys and values, or the pair (hk, hv) where they differ.
      key_width, value_width: k and v.
      dtype: of keys and values; later calls keep it.
    """
    key_heads, value_heads = kv_heads if isinstance(kv_heads, tuple) else (kv_heads, kv_heads)
    return Cache(
        jnp.zeros((batch, capacity, key_heads, key_width), dtype),
        jnp.zeros((batch, capacity, value_heads, value_width), dtype),
        jnp.zeros((batch,), jnp.int32),
    )


def cached_tokens(cache: Cache, window: int | None) -> Tokens:
    """Segment and position of the cached tokens: all are in segment 0 of the call, the carried document."""
    slots = lax.broadcasted_iota(jnp.int32, cache.keys.shape[:2], 1)
    newest = cache.length[:, None] - 1
    # The largest position up to the newest that falls on each slot; below 0 where the slot was never used.
    position = slots if window is None else newest - (newest - slots) % jnp.int32(cache.keys.shape[1])
    used = (position >= 0) & (position <= newest)
    return Tokens(jnp.where(used, 0, PADDING_KEY).astype(jnp.int32), jnp.maximum(position, 0))


def overflowed(cache: Cache, tokens: Tokens, window: int | None) -> Array | None:
    """[b, t] bool: the real tokens that have no slot; None where that cannot happen."""
    return None if window is not None else (tokens.segment >= 0) & (tokens.position >= cache.keys.shape[1])


def updated_cache(cache: Cache, k: Array, v: Array, tokens: Tokens, length: Array, window: int | None, one_document: bool) -> Cache:
    """Computes the cache after a call.

    Args:
      k, v: [b, t, hk, k], [b, t, hv, v], of the call's tokens.
      tokens: their segments and positions.
      length: [b] int32, the current document's length after the call.
      one_document: known while tracing: no document starts in this call, so all of the old cache stays.
    """
    capacity, t = cache.keys.shape[1], k.shape[1]
    current = jnp.maximum(jnp.max(tokens.segment, axis=1, keepdims=True), 0)
    fits = tokens.position < capacity if window is None else tokens.position >= length[:, None] - capacity
    # Tokens that do not stay get slots beyond the end, all different: the indices of the scatter are unique.
    beyond = capacity + lax.broadcasted_iota(jnp.int32, tokens.position.shape, 1)
    slots = jnp.where((tokens.segment == current) & fits, tokens.position % jnp.int32(capacity), beyond)
    slots = jnp.broadcast_to(slots, (cache.keys.shape[0], t))

    def write(old, new):
        if not one_document:
            old = jnp.where((current > 0)[:, :, None, None], jnp.zeros_like(old), old)
        scatter = jax.vmap(lambda o, s, n: o.at[s].set(n, mode="drop", unique_indices=True))
        return scatter(old, slots, new.astype(old.dtype))

    return Cache(write(cache.keys, k), write(cache.values, v), length)
