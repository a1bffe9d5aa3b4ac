"""What segment ids mean. The one place for document logic: ops and mixers only ask.

`segment_ids` [b, t] int32 gives each token the id of its document; 0 is padding. A document starts where a non-padding id differs
from the non-padding id before it, across calls: ids compare with neighbours only, so [1, 2, 1] is three documents. A later call
brings `initial_segment` [b] int32, the last non-zero id seen (0, or None: none yet, so what is carried belongs to the first token's
document). `segment_ids=None` means that every token continues that document.
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import pieces, placement
from seqzoo.kernels.common.varying import zeros


def check(segment_ids: Array | None, initial_segment: Array | None, batch: int, length: int) -> None:
    """Raises ValueError unless the ids have the shapes and the integer dtype that the rules above ask for."""
    for name, ids, shape in (("segment_ids", segment_ids, (batch, length)), ("initial_segment", initial_segment, (batch,))):
        if ids is None:
            continue
        if ids.shape != shape:
            raise ValueError(f"{name} has shape {ids.shape}, wanted {shape}: one id per {'token' if len(shape) == 2 else 'row'}")
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"{name} has dtype {ids.dtype}, wanted int32 (a boolean padding mask: mask.astype('int32'))")


def previous_real(segment_ids: Array) -> Array:
    """[b, t] int32: the row of the last non-padding token strictly before each token; -1 where there is none."""
    rows = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = lax.cummax(jnp.where(segment_ids != 0, rows, -1), axis=1)
    return jnp.concatenate([jnp.full_like(latest[:, :1], -1), latest[:, :-1]], axis=1)


def starts(segment_ids: Array, initial_segment: Array | None = None) -> Array:
    """[b, t] bool: the tokens that begin a document, so that nothing from before may reach them."""

    def piece(ids, carried):
        if layout.time is not None:
            carried = pieces.fold(_latest, _last_real(ids), carried, layout.time)
        before = previous_real(ids)
        previous = jnp.where(before < 0, carried[:, None], jnp.take_along_axis(ids, jnp.maximum(before, 0), axis=1))
        return (ids != 0) & (previous != 0) & (ids != previous)

    layout = _layout(segment_ids)
    carried = jnp.zeros_like(segment_ids[:, 0]) if initial_segment is None else initial_segment.astype(segment_ids.dtype)
    return pieces.run(layout, piece, (segment_ids, carried), ("b t", "b"), "b t")


def firsts(segment_ids: Array | None, initial_segment: Array, length: int) -> Array:
    """[b, t] bool: the first token of every document, also of the very first, which has nothing to forget and is not in `starts`.

    For those to whom an empty past is more than a state of zeros. `initial_segment` 0 means that nothing has been seen.
    """
    if segment_ids is None:
        rows = lax.broadcasted_iota(jnp.int32, (initial_segment.shape[0], length), 1)
        return (rows == 0) & (initial_segment == 0)[:, None]
    nobody = jnp.iinfo(initial_segment.dtype).min  # an id that differs from any document's
    return starts(segment_ids, jnp.where(initial_segment == 0, nobody, initial_segment))


def number(segment_ids: Array, initial_segment: Array | None = None) -> Array:
    """[b, t] int32: which document of this call each token is in; 0 is the carried one, -1 is padding."""

    def piece(ids, begins):
        count = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
        if layout.time is not None:
            zero = zeros(count[:, 0])
            count = count + pieces.fold(jnp.add, count[:, -1], zero, layout.time)[:, None]
        return jnp.where(ids != 0, count, -1)

    layout = _layout(segment_ids)
    return pieces.run(layout, piece, (segment_ids, starts(segment_ids, initial_segment)), ("b t", "b t"), "b t")


def positions(segment_ids: Array | None, initial_segment: Array | None, count: Array, length: int) -> tuple[Array, Array]:
    """Each token's index inside its own document, counting on from `count` [b] int32, the tokens of the carried document so far.

    Returns (positions [b, t] int32, the count after the call [b] int32). Padding takes no position; what it is given means nothing.
    """
    if segment_ids is None:
        steps = lax.broadcasted_iota(jnp.int32, (count.shape[0], length), 1)
        return count[:, None] + steps, count + jnp.int32(length)

    def piece(ids, begins, count):
        real = (ids != 0).astype(jnp.int32)
        before = jnp.cumsum(real, axis=1, dtype=jnp.int32) - real  # real tokens before each, in this piece
        if layout.time is not None:
            latest = jnp.max(jnp.where(begins, before, -1), axis=1)  # where the current document began; -1: before this piece
            own = before[:, -1] + real[:, -1] - jnp.maximum(latest, 0)
            count = pieces.fold(
                lambda count, last: jnp.where(last[0], last[1], count + last[1]), (latest >= 0, own), count, layout.time
            )
        # The latest start's `before` is the largest so far, and -count is below all of them: a running maximum finds it.
        base = lax.cummax(jnp.where(begins, before, -count[:, None]), axis=1)
        after = (before + real - base)[:, -1]
        return jnp.maximum(before - base, 0), pieces.of_piece(-1, after, layout.time)

    layout = _layout(segment_ids)
    begins = starts(segment_ids, initial_segment)
    return pieces.run(layout, piece, (segment_ids, begins, count), ("b t", "b t", "b"), ("b t", "b"))


def last_segment(segment_ids: Array | None, initial_segment: Array) -> Array:
    """[b] int32: the id to carry on, the last non-zero one seen. Tokens without ids (None) open document 1 if there is none."""
    if segment_ids is None:
        return jnp.where(initial_segment == 0, 1, initial_segment)
    return _latest(initial_segment, _last_real(segment_ids)).astype(jnp.int32)


def _last_real(segment_ids: Array) -> Array:
    """[b]: the last non-zero id; 0 where there is none. Reductions alone, so that a mesh that cuts time sums small pieces."""
    rows = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = jnp.max(jnp.where(segment_ids != 0, rows, -1), axis=1, keepdims=True)
    return jnp.sum(jnp.where(rows == latest, segment_ids, 0), axis=1, dtype=segment_ids.dtype)


def _latest(carried: Array, last: Array) -> Array:
    """`last` unless there is none."""
    return jnp.where(last == 0, carried, last)


def _layout(segment_ids: Array) -> placement.Layout:
    return placement.plan("documents", b=segment_ids.shape[0], t=segment_ids.shape[1])


def zero_padding(y: Array, segment_ids: Array | None) -> Array:
    """y [b, t, ...] with exact zeros at padding."""
    if segment_ids is None:
        return y
    real = (segment_ids != 0).reshape(segment_ids.shape + (1,) * (y.ndim - 2))
    return jnp.where(real, y, jnp.zeros_like(y))
