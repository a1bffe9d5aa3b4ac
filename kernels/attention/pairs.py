"""Relation of one query and one key: visibility, and weights that dropout removes. For all implementations."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random

ABSENT_KEY, ABSENT_QUERY = -1, -2  # two documents that equal nothing, each other included


class Tokens(NamedTuple):
    """Document and index of tokens. The leading axis is the batch, or 1 when all rows agree."""

    document: Array  # [b, n] int32, number of the document; ABSENT_KEY and ABSENT_QUERY mark padding
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
    seen = (queries.document[:, :, None] == keys.document[:, None, :]) & (age >= 0)
    if settings.window is not None:
        seen &= age < settings.window
    return seen[:, None]


def dropout_words(key: Array, queries: Tokens, batch: int, heads: int) -> Array:
    """[b, h, t, 2] uint32: a random word pair per (row, head, document, query index), from which each weight's draw follows.

    Drawing by counters that name the pair, not by its place in some block, makes the draw independent of block sizes and of cuts.
    """
    key = random.wrap_key_data(random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    shape = (batch, heads, queries.position.shape[1])
    keys = jax.vmap(random.fold_in, (None, 0))(key, jnp.arange(batch * heads, dtype=jnp.uint32))
    keys = jnp.broadcast_to(keys.reshape(batch, heads, 1), shape)
    for counter in queries:
        counter = jnp.broadcast_to(counter[:, None], shape).astype(jnp.uint32)
        keys = jax.vmap(random.fold_in)(keys.reshape(-1), counter.reshape(-1)).reshape(shape)
    return random.key_data(keys)


def kept(settings: Settings, words: Array, keys: Tokens) -> Array:
    """[b, h, t, s], the factor of each weight: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    b, h, t, _ = words.shape
    index = jnp.broadcast_to(keys.position, (b, keys.position.shape[1])).astype(jnp.uint32)
    rows = random.wrap_key_data(words.reshape(b, h * t, 2), impl="threefry2x32")
    along_keys = jax.vmap(random.fold_in, (None, 0))
    drawn = random.key_data(jax.vmap(jax.vmap(along_keys, (0, None)))(rows, index))[..., 0].reshape(b, h, t, -1)
    threshold = jnp.uint32(min(round(settings.dropout * 2**32), 2**32 - 1))
    return jnp.where(drawn >= threshold, 1 / (1 - settings.dropout), 0.0)
