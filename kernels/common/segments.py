"""Segments: the documents packed into a row. All segment logic is here; ops and mixers only call it.

`segment_ids` [b, t] int32 gives each token the id of its document; 0 is padding. A document starts where a non-padding id differs
from the non-padding id before it, across calls: ids are compared with neighbours only, so [1, 2, 1] is three documents. A later
call passes `initial_segment` [b] int32, the last non-zero id so far (0 or None: none yet, and the initial state belongs to the
first token's document). `segment_ids=None`: every token continues that document.
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import sharding
from seqzoo.kernels.common.vma import zeros_like_vma


def check(segment_ids: Array | None, initial_segment: Array | None, batch: int, length: int) -> None:
    """Raises ValueError unless there are rows and tokens, and the ids have the shapes and an integer dtype as above."""
    if batch < 1 or length < 1:
        raise ValueError(f"{batch} rows of {length} tokens, wanted at least one of each: skip an empty piece, it changes nothing")
    for name, ids, shape in (("segment_ids", segment_ids, (batch, length)), ("initial_segment", initial_segment, (batch,))):
        if ids is None:
            continue
        if ids.shape != shape:
            raise ValueError(f"{name} has shape {ids.shape}, wanted {shape}: one id per {'token' if len(shape) == 2 else 'row'}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name} has dtype {ids.dtype}, wanted int32 (a boolean padding mask: mask.astype('int32'))")


def previous_token(segment_ids: Array) -> Array:
    """[b, t] int32: the index of the last non-padding token strictly before each token; -1 where there is none."""
    indices = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = lax.cummax(jnp.where(segment_ids != 0, indices, -1), axis=1)
    return jnp.concatenate([jnp.full_like(latest[:, :1], -1), latest[:, :-1]], axis=1)


def starts(segment_ids: Array, initial_segment: Array | None = None) -> Array:
    """[b, t] bool: the tokens that begin a document and forget everything before it."""
    return _begin(segment_ids, initial_segment, lambda previous: previous != 0)


def _begin(segment_ids, initial_segment, where):
    """The tokens that begin a document, where `where(id of the token before, 0 if there is none)` holds too."""

    def local(ids, carried):
        if shards.time is not None:
            carried = sharding.prefix_over_shards(_latest, _last_real(ids), carried, shards.time)
        before = previous_token(ids)
        previous = jnp.where(before < 0, carried[:, None], jnp.take_along_axis(ids, jnp.maximum(before, 0), axis=1))
        return (ids != 0) & (ids != previous) & where(previous)

    shards = _plan(segment_ids)
    ids = segment_ids.astype(jnp.int32)  # ids of a narrower dtype are compared with the int32 of a state
    carried = jnp.zeros_like(ids[:, 0]) if initial_segment is None else initial_segment.astype(jnp.int32)
    return sharding.run_sharded(shards, local, (ids, carried), ("b t", "b"), "b t")


def ids(segment_ids: Array | None, initial_segment: Array | None, shape: tuple[int, ...]) -> Array:
    """[b, t] int32: the id of each token; without ids that of the document before, 1 where there is none."""
    if segment_ids is not None:
        return segment_ids.astype(jnp.int32)
    if initial_segment is None:
        return jnp.ones(shape, jnp.int32)
    return jnp.broadcast_to(last_segment(None, initial_segment)[:, None], shape)


def first_tokens(segment_ids: Array | None, initial_segment: Array, length: int) -> Array:
    """[b, t] bool: the first token of every document, also of the very first, which has nothing to forget and is not in `starts`.

    For recurrences in which an empty past differs from a zero state. `initial_segment` 0: there was no token before this call.
    """
    if segment_ids is None:
        indices = lax.broadcasted_iota(jnp.int32, (initial_segment.shape[0], length), 1)
        return (indices == 0) & (initial_segment == 0)[:, None]
    return _begin(segment_ids, initial_segment, lambda previous: True)


def relabel(segment_ids: Array, initial_segment: Array | None = None) -> Array:
    """[b, t] int32: each token's document, numbered within this call; 0 is the document of the initial state, -1 is padding."""

    def local(ids, begins):
        count = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
        if shards.time is not None:
            zero = zeros_like_vma(count[:, 0])
            count = count + sharding.prefix_over_shards(jnp.add, count[:, -1], zero, shards.time)[:, None]
        return jnp.where(ids != 0, count, -1)

    shards = _plan(segment_ids)
    return sharding.run_sharded(shards, local, (segment_ids, starts(segment_ids, initial_segment)), ("b t", "b t"), "b t")


def positions(segment_ids: Array | None, initial_segment: Array | None, count: Array, length: int) -> tuple[Array, Array]:
    """Index of each token inside its own document; the first document has had `count` [b] int32 tokens before this call.

    Returns (positions [b, t] int32, the count after the call [b] int32). Padding takes no position; its values are unspecified.
    """
    if segment_ids is None:
        indices = lax.broadcasted_iota(jnp.int32, (count.shape[0], length), 1)
        return count[:, None] + indices, count + jnp.int32(length)

    def local(ids, begins, count):
        real = (ids != 0).astype(jnp.int32)
        before = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real  # real tokens before each, in this shard
        if shards.time is not None:
            latest = jnp.max(jnp.where(begins, before, -1), axis=1)  # start of the last document; -1: before this shard
            own = before[:, -1] + real[:, -1] - jnp.maximum(latest, 0)
            compose = lambda count, last: jnp.where(last[0], last[1], count + last[1])
            count = sharding.prefix_over_shards(compose, (latest >= 0, own), count, shards.time)
        # The latest start's `before` is the largest so far, and -count is below all of them: a running maximum finds it.
        base = lax.cummax(jnp.where(begins, before, -count[:, None]), axis=1)
        after = (before + real - base)[:, -1]
        return jnp.maximum(before - base, 0), sharding.broadcast_from_shard(-1, after, shards.time)

    shards = _plan(segment_ids)
    begins = starts(segment_ids, initial_segment)
    return sharding.run_sharded(shards, local, (segment_ids, begins, count), ("b t", "b t", "b"), ("b t", "b"))


def last_segment(segment_ids: Array | None, initial_segment: Array) -> Array:
    """[b] int32: the last non-zero id, to pass to the next call. Tokens without ids (None) open document 1 if there is none."""
    if segment_ids is None:
        return jnp.where(initial_segment == 0, 1, initial_segment)
    return _latest(initial_segment, _last_real(segment_ids)).astype(jnp.int32)


def _last_real(segment_ids: Array) -> Array:
    """[b]: the last non-zero id; 0 where there is none. Reductions alone, so that sharded time is reduced shard by shard."""
    indices = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = jnp.max(jnp.where(segment_ids != 0, indices, -1), axis=1, keepdims=True)
    return jnp.sum(jnp.where(indices == latest, segment_ids, 0), axis=1, dtype=segment_ids.dtype)


def _latest(carried: Array, last: Array) -> Array:
    """The last id seen: `last` unless it is 0."""
    return jnp.where(last == 0, carried, last)


def _plan(segment_ids: Array) -> sharding.OpSharding:
    return sharding.plan("segments", b=segment_ids.shape[0], t=segment_ids.shape[1])


def mask_padding(y: Array, segment_ids: Array | None) -> Array:
    """y [b, t, ...] with exact zeros at padding, and gradients that are exactly 0 there.

    By selection: a product with a mask would keep NaN and inf, since 0 NaN is NaN. Ops and mixers pass their inputs through it
    before they compute anything: a NaN that is masked later still reaches gradients, as a factor of a zero. None costs nothing.
    """
    if segment_ids is None:
        return y
    real = (segment_ids != 0).reshape(segment_ids.shape + (1,) * (y.ndim - 2))
    return jnp.where(real, y, jnp.zeros_like(y))
