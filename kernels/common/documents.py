"""What segment ids mean. The one place for document logic: ops and mixers only ask.

`segment_ids` [b, t] int32 gives each token the id of its document; 0 is padding. A document starts where a non-padding id differs
from the non-padding id before it, across calls: ids compare with neighbours only, so [1, 2, 1] is three documents. A later call
brings `initial_segment` [b] int32, the last non-zero id seen (0, or None: none yet, so what is carried belongs to the first token's
document). `segment_ids=None` means that every token continues that document.
"""

import jax.numpy as jnp
from jax import Array, lax


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
    before = previous_real(segment_ids)
    carried = jnp.zeros_like(segment_ids[:, :1]) if initial_segment is None else initial_segment[:, None].astype(segment_ids.dtype)
    previous = jnp.where(before < 0, carried, jnp.take_along_axis(segment_ids, jnp.maximum(before, 0), axis=1))
    return (segment_ids != 0) & (previous != 0) & (segment_ids != previous)


def number(segment_ids: Array, initial_segment: Array | None = None) -> Array:
    """[b, t] int32: which document of this call each token is in; 0 is the carried one, -1 is padding."""
    count = jnp.cumsum(starts(segment_ids, initial_segment), axis=1, dtype=jnp.int32)
    return jnp.where(segment_ids != 0, count, -1)


def positions(segment_ids: Array | None, initial_segment: Array | None, count: Array, length: int) -> tuple[Array, Array]:
    """Each token's index inside its own document, counting on from `count` [b] int32, the tokens of the carried document so far.

    Returns (positions [b, t] int32, the count after the call [b] int32). Padding takes no position; what it is given means nothing.
    """
    if segment_ids is None:
        steps = lax.broadcasted_iota(jnp.int32, (count.shape[0], length), 1)
        return count[:, None] + steps, count + jnp.int32(length)
    before = jnp.cumsum(segment_ids != 0, axis=1, dtype=jnp.int32) - (segment_ids != 0)  # real tokens before each, this call
    # The latest start's `before` is the largest so far, and -count is below all of them: a running maximum finds it.
    base = lax.cummax(jnp.where(starts(segment_ids, initial_segment), before, -count[:, None]), axis=1)
    after = (before + (segment_ids != 0) - base)[:, -1]
    return jnp.maximum(before - base, 0), after


def last_segment(segment_ids: Array | None, initial_segment: Array) -> Array:
    """[b] int32: the id to carry on, the last non-zero one seen. Tokens without ids (None) open document 1 if there is none."""
    if segment_ids is None:
        return jnp.where(initial_segment == 0, 1, initial_segment)
    rows = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    latest = jnp.max(jnp.where(segment_ids != 0, rows, -1), axis=1, keepdims=True)
    found = jnp.take_along_axis(segment_ids, jnp.maximum(latest, 0), axis=1)
    return jnp.where(latest < 0, initial_segment[:, None], found)[:, 0].astype(jnp.int32)


def zero_padding(y: Array, segment_ids: Array | None) -> Array:
    """y [b, t, ...] with exact zeros at padding."""
    if segment_ids is None:
        return y
    real = (segment_ids != 0).reshape(segment_ids.shape + (1,) * (y.ndim - 2))
    return jnp.where(real, y, jnp.zeros_like(y))
