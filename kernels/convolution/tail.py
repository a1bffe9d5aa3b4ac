"""Transition of the tail over one shard of the sequence, for context parallelism (time sharded over devices).

A shard resets the tail if a document starts in it, and appends the last tokens of its last document:

    tail before   [ p q r ]        shard with the tokens ... x y        tail after   [ r x y ]      (width - 1 = 3)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class TailTransition(NamedTuple):
    """Effect of a shard on any tail: its last real tokens of its last document, and a reset."""

    tokens: Array  # [b, width - 1, d], the latest last; only the last `appended` of them are defined
    appended: Array  # [b] int32, number of these tokens
    resets: Array  # [b] bool, True if a document starts in the shard


def tail_transition(x: Array, real: Array | None, start: Array | None, slots: int) -> TailTransition:
    """The transition of x [b, t, d]; `real` and `start` [b, t] bool, or None for one document without padding."""
    batch, length = x.shape[:2]
    if real is None or start is None:
        tokens = jnp.pad(x, [(0, 0), (max(0, slots - length), 0), (0, 0)])[:, max(length - slots, 0) :]
        return TailTransition(tokens, jnp.full((batch,), min(length, slots), jnp.int32), jnp.zeros((batch,), bool))
    later_starts = jnp.cumsum(start[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - start
    current = real & (later_starts == 0)  # in the last document
    rank = jnp.cumsum(current[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1] - 1  # number of real tokens after each
    steps = lax.broadcasted_iota(jnp.int32, real.shape, 1)
    indices = [jnp.max(jnp.where(current & (rank == slots - 1 - i), steps, 0), axis=1) for i in range(slots)]
    tokens = jnp.take_along_axis(x, jnp.stack(indices, axis=1)[:, :, None], axis=1, mode="clip")
    return TailTransition(tokens, jnp.minimum(jnp.sum(current, axis=1, dtype=jnp.int32), slots), jnp.any(start, axis=1))


def apply_transition(tail: Array, transition: TailTransition) -> Array:
    """The tail after a shard."""
    slot = lax.broadcasted_iota(jnp.int32, tail.shape[:2], 1)
    before = jnp.where(transition.resets[:, None, None], 0, tail)
    count = transition.appended[:, None]
    shifted = jnp.take_along_axis(before, jnp.minimum(slot + count, tail.shape[1] - 1)[:, :, None], axis=1, mode="clip")
    return jnp.where((slot >= tail.shape[1] - count)[:, :, None], transition.tokens, shifted)
