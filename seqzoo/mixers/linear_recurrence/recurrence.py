"""What mixers on linear recurrences have in common: the memory, how it is carried, and what stands around it."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import Mixer, next_state, state_kwargs


class RecurrenceState(NamedTuple):
    """One number per cell."""

    memory: Array  # [b, e]
    segment: Array  # [b] int32


class Recurrence(Mixer):
    """h_t = a_t * h_{t-1} + b_t over real cells. Subclasses say what a and b are, and how h is read.

    They set `sizes` = (d_model, e), or more numbers for cells of more axes; `implementation` (of the op); and `dtype` (of the
    computation). Those with `log_decay` give log a for a.
    """

    log_decay: ClassVar[bool] = False

    def gates(self, x: Array) -> tuple[Array, Array]:
        """x [b, t, d_model] -> (a, b), each [b, t, e] in float32 or wider; a's first two axes may be 1."""
        raise NotImplementedError

    def read(self, x: Array, h: Array) -> Array:
        """x [b, t, d_model], h [b, t, e] -> y [b, t, d_model]."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        decay, written = self.gates(x)
        settings = {"log": self.log_decay, "segment_ids": segment_ids, "implementation": self.implementation}
        h, memory = linear_recurrence(decay, written, **settings, **state_kwargs(state))
        return self.read(x, h), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> RecurrenceState:
        """Empty cells; `max_length` has no bearing on their number."""
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        return RecurrenceState(jnp.zeros((batch, *self.sizes[1:]), dtype), jnp.zeros((batch,), jnp.int32))


class ComplexState(NamedTuple):
    """A complex number per cell, as two planes: real arrays, as every state's leaves are."""

    real: Array  # [b, ...]
    imaginary: Array  # [b, ...]
    segment: Array  # [b] int32


class ComplexRecurrence(Mixer):
    """h_t = a * h_{t-1} + b_t over complex cells, with one a for all tokens. Subclasses say what a and b are, and how h is read.

    They set `sizes` = (d_model, *cells), `implementation` and `dtype` as for `Recurrence`.
    """

    def gates(self, x: Array) -> tuple[Array, Array]:
        """x [b, t, d_model] -> (a [*cells], b [b, t, *cells]), complex of float32 or wider."""
        raise NotImplementedError

    def read(self, x: Array, real: Array, imaginary: Array) -> Array:
        """x [b, t, d_model], h's planes [b, t, *cells] -> y [b, t, d_model]."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        decay, written = self.gates(x)
        before = {}
        if state is not None:
            before = {"initial_state": lax.complex(state.real, state.imaginary), "initial_segment": state.segment}
        settings = {"segment_ids": segment_ids, "implementation": self.implementation}
        h, last = linear_recurrence(decay[None, None], written, **settings, **before)
        return self.read(x, h.real, h.imag), next_state(state, segment_ids, real=last.real, imaginary=last.imag)

    def init_state(self, batch, max_length=None, dtype=None) -> ComplexState:
        """Both planes zero; `max_length` has no bearing on their size."""
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        plane = jnp.zeros((batch, *self.sizes[1:]), dtype)
        return ComplexState(plane, plane, jnp.zeros((batch,), jnp.int32))


class BranchState(NamedTuple):
    """The cells, and the convolution's last inputs."""

    memory: Array  # [b, e]
    tail: Array  # [b, conv_size - 1, e]
    segment: Array  # [b] int32


class BranchedRecurrence(Mixer):
    """y_t = W_out [gelu(W_y x_t) * read(h_t)] for h_t = a_t * h_{t-1} + b_t, with a and b made of u = conv(W_x x).

    Subclasses set `linear_x`, `linear_y`, `conv_1d` and `linear_out`, `sizes` = (d_model, e), `implementation` and `dtype`.
    """

    approximate_gelu: ClassVar[bool]  # the tanh formula

    def gates(self, u: Array, state: BranchState | None, segment_ids: Array | None) -> tuple[Array, Array]:
        """u [b, t, e] -> (log a, b), each [b, t, e] in float32 or wider."""
        raise NotImplementedError

    def read(self, u: Array, h: Array) -> Array:
        """u, h [b, t, e] -> [b, t, e]."""
        return h

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        u, tail = self.conv_1d(self.linear_x(x), tail=tail, segment=segment, segment_ids=segment_ids)
        log_decay, written = self.gates(u, state, segment_ids)
        settings = {"log": True, "segment_ids": segment_ids, "implementation": self.implementation}
        h, memory = linear_recurrence(log_decay, written, **settings, **state_kwargs(state))
        gate = jax.nn.gelu(self.linear_y(x), approximate=self.approximate_gelu)
        y = self.linear_out(gate * self.read(u, h).astype(gate.dtype))
        return y, next_state(state, segment_ids, memory=memory, tail=tail)

    def init_state(self, batch, max_length=None, dtype=None) -> BranchState:
        """Empty cells and tail; `max_length` has no bearing on their size."""
        dtype = self.dtype if dtype is None else dtype
        memory = jnp.zeros((batch, self.sizes[1]), jnp.promote_types(jnp.float32, dtype))
        return BranchState(memory, self.conv_1d.init_state(batch, dtype), jnp.zeros((batch,), jnp.int32))


def cells(d_model: int, expand: float) -> int:
    """e = d_model * expand, rounded; ValueError if that leaves none."""
    e = round(d_model * expand)
    if e < 1:
        raise ValueError(f"expand={expand} leaves {e} cells of d_model={d_model}: wanted at least 1, raise expand")
    return e
