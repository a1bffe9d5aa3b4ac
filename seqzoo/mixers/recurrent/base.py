"""Bases of recurrent mixers: hidden units with h_t = a_t * h_{t-1} + b_t, where a and b do not depend on h."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import Mixer, next_state, state_kwargs
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import Linear, ShortConvolution, gates
from seqzoo.nn.layer import inner_width
from seqzoo.specs import Expansion, Size

NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")

Implementation = Literal["reference", "recurrent", "chunkwise"]
"""Name of an implementation of `seqzoo.kernels.linear_recurrence`."""


class RecurrentState(NamedTuple):
    """Recurrent state: one number per hidden unit."""

    hidden: Array  # [b, e] float32 or wider
    segment: Array  # [b] int32, the document it belongs to


class RecurrentMixer(Mixer):
    """h_t = a_t * h_{t-1} + b_t,  y_t = output(x_t, h_t), over real hidden units; subclasses choose a, b and the output."""

    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_recurrence`; None: the fastest for platform and shape."""

    log_decay: ClassVar[bool] = False  # whether `decay_and_input` gives log a for a

    def hidden_shape(self) -> tuple[int, ...]:
        """Shape of h_t in one row."""
        raise NotImplementedError

    def decay_and_input(self, x: Array) -> tuple[Array, Array]:
        """x [b, t, d_model] -> (a, b), each [b, t, e] in float32 or wider; a's first two axes may be 1."""
        raise NotImplementedError

    def output(self, x: Array, h: Array) -> Array:
        """x [b, t, d_model], h [b, t, e] -> y [b, t, d_model]."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        h, hidden = linear_recurrence(
            *self.decay_and_input(x),
            log=self.log_decay,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "hidden"),
        )
        return self.output(x, h), next_state(state, segment_ids, hidden=hidden)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RecurrentState:
        """Hidden units at zero; `max_length` has no influence on their number."""
        dtype = jnp.promote_types(jnp.float32, self.cache_dtype(dtype))
        return RecurrentState(jnp.zeros((batch, *self.hidden_shape()), dtype), jnp.zeros((batch,), jnp.int32))


class MinimalMixer(RecurrentMixer):
    """h_t = a_t * h_{t-1} + w_t * c_t,  c_t = g(W_h x_t + b_h),  y_t = W_o h_t (Feng et al. 2024, arXiv:2410.01201).

    g(u) = u + 1/2 for u >= 0 and sigmoid(u) below; subclasses choose the gates a and w.
    """

    expand: Expansion = 1.0
    """Number e of hidden units, as a multiple of d_model."""
    positive: bool = True
    """Applies g to the candidates, which makes them positive: the log-space form of the paper (appendix B) and of the public code.
    If False, c_t = W_h x_t + b_h, the form of the paper's main text."""
    bias: bool = True
    """Adds biases to gates and candidates, zero at initialisation."""

    gate_count: ClassVar[int]  # projections of x that make the gates; part of the FLOPs
    shapes = (Shape({}, {"expand": 1}),)

    def setup(self, rngs, depth):
        self.hidden_size = inner_width(self.d_model, self.expand)
        kwargs = self.factory_kwargs(rngs)
        make = lambda: Linear(self.d_model, self.hidden_size, bias=self.bias, **kwargs)
        self.make_gates(make)
        self.candidate = make()
        self.out = Linear(self.hidden_size, self.d_model, axes=("heads", "embed"), **kwargs)

    def make_gates(self, make: Callable[[], Linear]) -> None:
        """Makes the projections of the gates; `make()` gives one [d_model -> e]."""
        raise NotImplementedError

    def hidden_shape(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def candidates(self, x: Array) -> Array:
        """c [b, t, e] of all tokens, float32 or wider."""
        candidate = self.candidate(x)
        candidate = candidate.astype(jnp.promote_types(candidate.dtype, jnp.float32))
        return gates.positive(candidate) if self.positive else candidate

    def output(self, x: Array, h: Array) -> Array:
        return self.out(h.astype(jnp.result_type(x, self.out.w[...])))

    def flops(self, batch: int, length: int) -> int:
        return 2 * batch * length * self.d_model * self.hidden_size * (self.gate_count + 2)


class RecurrentBlockState(NamedTuple):
    """Recurrent state, and the last inputs of the convolution."""

    hidden: Array  # [b, e] float32 or wider
    tail: Array  # [b, conv_size - 1, e]
    segment: Array  # [b] int32


class RecurrentBlockMixer(Mixer):
    """y_t = W_out [gelu(W_y x_t) * read(u_t, h_t)],  h_t = a_t * h_{t-1} + b_t,  a and b computed from u = conv(W_x x).

    The recurrent block of Griffin (De et al. 2024, arXiv:2402.19427): two branches, one of which has the convolution and the
    recurrence. Subclasses choose a, b and how h is read.
    """

    expand: Expansion = 1.0
    """Number e of hidden units, as a multiple of d_model."""
    conv_size: Size = 4
    """Kernel size of the short convolution, which has no activation."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_recurrence`; None: the fastest for platform and shape."""

    approximate_gelu: ClassVar[bool]  # whether gelu is the tanh formula

    def make_layers(self, rngs: nnx.Rngs, *, bias: bool, conv_init: Callable | None = None, out_init: Callable = NORMAL) -> None:
        """Makes all layers; a subclass calls it in `setup`.

        Args:
          bias: whether the projections have biases.
          conv_init: initialiser of the convolution; None: that of `ShortConvolution`.
          out_init: initialiser of the last projection.
        """
        self.hidden_size = inner_width(self.d_model, self.expand)
        kwargs = self.factory_kwargs(rngs)
        self.linear_x, self.linear_y = (Linear(self.d_model, self.hidden_size, bias=bias, init=NORMAL, **kwargs) for _ in range(2))
        self.conv_1d = ShortConvolution(self.hidden_size, self.conv_size, init=conv_init, **kwargs)
        self.make_gates(rngs)
        self.linear_out = Linear(self.hidden_size, self.d_model, axes=("heads", "embed"), bias=bias, init=out_init, **kwargs)

    def make_gates(self, rngs: nnx.Rngs) -> None:
        """Makes the layers of a and b, and of the gate that reads h."""
        raise NotImplementedError

    def decay_and_input(self, u: Array, state: Any, segment_ids: Array | None, positions: Array | None) -> tuple[Array, Array]:
        """u [b, t, e] -> (log a, b), each [b, t, e] in float32 or wider."""
        raise NotImplementedError

    def read(self, u: Array, h: Array) -> Array:
        """u, h [b, t, e] -> [b, t, e], the recurrent branch's output."""
        return h

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        u, tail = self.conv_1d(self.linear_x(x), tail=tail, segment=segment, segment_ids=segment_ids)
        h, hidden = linear_recurrence(
            *self.decay_and_input(u, state, segment_ids, positions),
            log=True,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "hidden"),
        )
        gate = jax.nn.gelu(self.linear_y(x), approximate=self.approximate_gelu)
        y = self.linear_out(gate * self.read(u, h).astype(gate.dtype))
        return y, next_state(state, segment_ids, hidden=hidden, tail=tail)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RecurrentBlockState:
        """Hidden units and tail at zero; `max_length` has no influence on their size."""
        dtype = self.cache_dtype(dtype)
        hidden = jnp.zeros((batch, self.hidden_size), jnp.promote_types(jnp.float32, dtype))
        return RecurrentBlockState(hidden, self.conv_1d.init_state(batch, dtype), jnp.zeros((batch,), jnp.int32))
