"""Transition of the convolution's tail over a shard: it may forget the tail, and appends its own last tokens. Shards compose."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Pushed(NamedTuple):
    """A piece's last real tokens of its last document."""

    rows: Array  # [b, width - 1, d], the latest last; what lies before the first of them means nothing
    number: Array  # [b] int32, how many of them there are
    forgets: Array  # [b] bool, whether a document starts in the piece


def pushed(x: Array, real: Array | None, start: Array | None, slots: int) -> Pushed:
    """That of x [b, t, d]; `real` and `start` [b, t] bool, or None for one document without padding."""
    batch, length = x.shape[:2]
    if real is None or start is None:
        rows = jnp.pad(x, [(0, 0), (max(0, slots - length), 0), (0, 0)])[:, max(length - slots, 0) :]
        return Pushed(rows, jnp.full((batch,), min(length, slots), jnp.int32), jnp.zeros((batch,), bool))
    after = jnp.cumsum(start[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - start
    current = real & (after == 0)  # in the last document
    rank = jnp.cumsum(current[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - 1  # real tokens behind each
    steps = lax.broadcasted_iota(jnp.int32, real.shape, 1)
    places = [jnp.max(jnp.where(current & (rank == slots - 1 - i), steps, 0), axis=1) for i in range(slots)]
    rows = jnp.take_along_axis(x, jnp.stack(places, axis=1)[:, :, None], axis=1, mode="clip")
    return Pushed(rows, jnp.minimum(jnp.sum(current, axis=1, dtype=jnp.int32), slots), jnp.any(start, axis=1))


def compose(tail: Array, piece: Pushed) -> Array:
    """The tail after a piece."""
    slot = lax.broadcasted_iota(jnp.int32, tail.shape[:2], 1)
    before = jnp.where(piece.forgets[:, None, None], 0, tail)
    count = piece.number[:, None]
    moved = jnp.take_along_axis(before, jnp.minimum(slot + count, tail.shape[1] - 1)[:, :, None], axis=1, mode="clip")
    return jnp.where((slot >= tail.shape[1] - count)[:, :, None], piece.rows, moved)
