"""What mixers with real cells have in common: the memory, and how it is carried."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import Mixer, carried, updated


class RecurrenceState(NamedTuple):
    """One number per cell."""

    memory: Array  # [b, e]
    segment: Array  # [b] int32


class Recurrence(Mixer):
    """h_t = a_t * h_{t-1} + b_t over e real cells. Subclasses say what a and b are, and how h is read.

    They set `sizes` = (d_model, e), `implementation` (of the op) and `dtype` (of the computation).
    """

    def gates(self, x: Array) -> tuple[Array, Array]:
        """x [b, t, d_model] -> (a, b), each [b, t, e] in float32 or wider."""
        raise NotImplementedError

    def read(self, x: Array, h: Array) -> Array:
        """x [b, t, d_model], h [b, t, e] -> y [b, t, d_model]."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        decay, written = self.gates(x)
        h, memory = linear_recurrence(decay, written, segment_ids=segment_ids, implementation=self.implementation, **carried(state))
        return self.read(x, h), updated(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> RecurrenceState:
        """Empty cells; `max_length` has no bearing on their number."""
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        return RecurrenceState(jnp.zeros((batch, self.sizes[1]), dtype), jnp.zeros((batch,), jnp.int32))


def cells(d_model: int, expand: float) -> int:
    """e = d_model * expand, rounded; ValueError if that leaves none."""
    e = round(d_model * expand)
    if e < 1:
        raise ValueError(f"expand={expand} leaves {e} cells of d_model={d_model}: wanted at least 1, raise expand")
    return e
