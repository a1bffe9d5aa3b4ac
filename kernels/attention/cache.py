"""The state of attention: the keys and values of the current document, by index inside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.attention.pairs import ABSENT_KEY, Tokens


class Cache(NamedTuple):
    """Keys and values of the current document. Slot of a token = its index modulo the capacity s; unused slots are 0.

    With a window the cache is a ring of s >= window slots; without one it never wraps, and s is the longest document it can hold.
    Bytes: b s (hk k + hv v) elements.
    """

    keys: Array  # [b, s, hk, k]
    values: Array  # [b, s, hv, v]
    length: (
        Array  # [b] int32, real tokens of the current document seen so far; above s without a window: overflown, outputs are NaN
    )


def empty_cache(batch: int, capacity: int, kv_heads: int | tuple[int, int], key_width: int, value_width: int, dtype: Any) -> Cache:
    """The cache of `batch` rows that have seen nothing.

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
    """Document and index of the cached tokens: all are in document 0 of the call, the carried one."""
    slots = lax.broadcasted_iota(jnp.int32, cache.keys.shape[:2], 1)
    newest = cache.length[:, None] - 1
    # The largest index up to the newest that falls on each slot; below 0 where the slot was never used.
    index = slots if window is None else newest - (newest - slots) % jnp.int32(cache.keys.shape[1])
    used = (index >= 0) & (index <= newest)
    return Tokens(jnp.where(used, 0, ABSENT_KEY).astype(jnp.int32), jnp.maximum(index, 0))


def overflown(cache: Cache, tokens: Tokens, window: int | None) -> Array | None:
    """[b, t] bool: the real tokens that have no slot; None where that cannot happen."""
    return None if window is not None else (tokens.document >= 0) & (tokens.position >= cache.keys.shape[1])


def behind(o: Array, tokens: Tokens) -> Tokens:
    """`tokens` as they are, but XLA takes them to follow from o [b, t, h, v]: it writes the cache once the old one has been read.

    Only then a loop keeps one cache, changed in its place; else XLA copies it, to read the old one while it makes the new. An
    `optimization_barrier` would say the same, but XLA on CPUs drops it before it decides on copies.
    """
    bits = lax.bitcast_convert_type(lax.stop_gradient(o[:, :, 0, 0]).astype(jnp.float32), jnp.int32)
    below = -1 - lax.shift_right_logical(bits, jnp.int32(1))  # less than any index, whatever o is, NaN included
    return tokens._replace(position=jnp.maximum(tokens.position, below))


def written(cache: Cache, k: Array, v: Array, tokens: Tokens, length: Array, window: int | None, whole: bool) -> Cache:
    """The cache after a call.

    Args:
      k, v: [b, t, hk, k], [b, t, hv, v], what the call brought.
      tokens: where they stand.
      length: [b] int32, the current document's length after the call.
      whole: no document starts in this call, as far as is known while tracing, so all of the old cache stays.
    """
    capacity, t = cache.keys.shape[1], k.shape[1]
    current = jnp.maximum(jnp.max(tokens.document, axis=1, keepdims=True), 0)
    fits = tokens.position < capacity if window is None else tokens.position >= length[:, None] - capacity
    # Tokens that are not kept get slots beyond the end, all different: no two writes ever meet.
    beyond = capacity + lax.broadcasted_iota(jnp.int32, tokens.position.shape, 1)
    slots = jnp.where((tokens.document == current) & fits, tokens.position % jnp.int32(capacity), beyond)
    slots = jnp.broadcast_to(slots, (cache.keys.shape[0], t))

    def write(old, new):
        if not whole:
            old = jnp.where((current > 0)[:, :, None, None], jnp.zeros_like(old), old)
        put = jax.vmap(lambda o, s, n: o.at[s].set(n, mode="drop", unique_indices=True))
        return put(old, slots, new.astype(old.dtype))

    return Cache(write(cache.keys, k), write(cache.values, v), length)
