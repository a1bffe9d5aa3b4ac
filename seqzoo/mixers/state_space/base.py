"""Base of time-invariant state-space mixers: complex states with h_t = a * h_{t-1} + b_t, and one a for all tokens."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import Mixer, next_state
from seqzoo.mixers.recurrent.base import Implementation


class ComplexState(NamedTuple):
    """Recurrent state: complex numbers, as real and imaginary parts, because every leaf of a state is a real array."""

    real: Array  # [b, ...] float32 or wider
    imaginary: Array  # [b, ...]
    segment: Array  # [b] int32, the document it belongs to


class TimeInvariantMixer(Mixer):
    """h_t = a * h_{t-1} + b_t,  y_t = output(x_t, h_t), with h, a, b complex; subclasses choose a, b and the output."""

    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_recurrence`; None: the fastest for platform and shape."""

    def state_shape(self) -> tuple[int, ...]:
        """Shape of h_t in one row."""
        raise NotImplementedError

    def decay_and_input(self, x: Array) -> tuple[Array, Array]:
        """x [b, t, d_model] -> (a [...], b [b, t, ...]), complex of float32 or wider; ... is the state's shape."""
        raise NotImplementedError

    def output(self, x: Array, real: Array, imaginary: Array) -> Array:
        """x [b, t, d_model], parts of h [b, t, ...] -> y [b, t, d_model]."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        decay, inputs = self.decay_and_input(x)
        h, last = linear_recurrence(
            decay[None, None],
            inputs,
            initial_state=None if state is None else lax.complex(state.real, state.imaginary),
            initial_segment=None if state is None else state.segment,
            segment_ids=segment_ids,
            implementation=self.implementation,
        )
        return self.output(x, h.real, h.imag), next_state(state, segment_ids, real=last.real, imaginary=last.imag)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> ComplexState:
        """Both parts zero; `max_length` has no influence on their size."""
        zeros = lambda: jnp.zeros((batch, *self.state_shape()), jnp.promote_types(jnp.float32, self.cache_dtype(dtype)))
        return ComplexState(zeros(), zeros(), jnp.zeros((batch,), jnp.int32))
