"""Relation of a query and a key: the mask (document, order, window) and dropout, the same for all implementations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

PADDING_KEY, PADDING_QUERY = -1, -2  # segments that equal no other, nor each other


class Tokens(NamedTuple):
    """Segment and position of tokens. The leading axis is the batch, or 1 when all rows agree."""

    segment: Array  # [b, n] int32, number of the document within the call; PADDING_KEY or PADDING_QUERY at padding
    position: Array  # [b, n] int32, index inside that document, counting real tokens only


class Settings(NamedTuple):
    """Settings of a call, static when it is traced."""

    scores: str
    bias: float
    scale: float
    window: int | None
    dropout: float


def visible(settings: Settings, queries: Tokens, keys: Tokens) -> Array:
    """[b, 1, t, s] bool: the same document, not later, and inside the window."""
    age = queries.position[:, :, None] - keys.position[:, None, :]
    mask = (queries.segment[:, :, None] == keys.segment[:, None, :]) & (age >= 0)
    if settings.window is not None:
        mask &= age < settings.window
    return mask[:, None]


def draw_random_bits(key: Array, queries: Tokens, batch: int, heads: int) -> Array:
    """[b, h, t, 2] uint32: two random words per (row, head, segment, query position), from which `dropout_mask` draws.

    The counters name the pair of query and key, not its place in a block, so the draw depends neither on block sizes nor on splits
    of the row. For this the segments of `queries` are ids, which a split does not change, unlike numbers within the call.
    """
    key = random.wrap_key_data(random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    shape = (batch, heads, queries.position.shape[1])
    keys = jax.vmap(random.fold_in, (None, 0))(key, jnp.arange(batch * heads, dtype=jnp.uint32))
    keys = jnp.broadcast_to(keys.reshape(batch, heads, 1), shape)
    for counter in queries:
        counter = jnp.broadcast_to(counter[:, None], shape).astype(jnp.uint32)
        keys = jax.vmap(random.fold_in)(keys.reshape(-1), counter.reshape(-1)).reshape(shape)
    return random.key_data(keys)


def dropout_mask(settings: Settings, random_bits: Array, keys: Tokens) -> Array:
    """[b, h, t, s], the factor of each weight: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    b, h, t, _ = random_bits.shape
    position = jnp.broadcast_to(keys.position, (b, keys.position.shape[1])).astype(jnp.uint32)
    of_queries = random.wrap_key_data(random_bits.reshape(b, h * t, 2), impl="threefry2x32")
    along_keys = jax.vmap(random.fold_in, (None, 0))
    drawn = random.key_data(jax.vmap(jax.vmap(along_keys, (0, None)))(of_queries, position))[..., 0].reshape(b, h, t, -1)
    threshold = jnp.uint32(min(round(settings.dropout * 2**32), 2**32 - 1))
    return jnp.where(drawn >= threshold, 1 / (1 - settings.dropout), 0.0)
