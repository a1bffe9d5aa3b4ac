"""BaseConv: a short convolution, gated by a projection of the token itself."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from seqzoo.mixers.base import Mixer, next_state, register
from seqzoo.nn import Linear, ShortConvolution


class BaseConvState(NamedTuple):
    """The convolution's last inputs."""

    tail: Array  # [b, width - 1, d]
    segment: Array  # [b] int32


@register("base_conv")
class BaseConv(Mixer):
    r"""BaseConv (Arora et al. 2023, arXiv:2312.04927), the gated convolution that others are reduced to.

        y_t = (c + sum_j w_j * x_{t-j}) * (W x_t + b) + x_t        j = 0 ... width - 1, elementwise

    Use it in front of a mixer that compares tokens and has no convolution of its own, such as `based`: a token then knows the one
    before it. Alone it sees no further than width - 1 tokens per layer.

    Args:
      d_model: width of x and y.
      width: taps of the convolution, at least 1.
      implementation: of the op `seqzoo.kernels.convolution`; None: the best for the platform.
    Raises:
      ValueError: width < 1.
    Cost: time O(t d^2 + t d width); state width - 1 inputs per row, independent of t.
    The paper's long filters (as long as the row, made by a small network of the position) are not here.
    """

    def __init__(self, d_model, *, width=3, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if width < 1:
            raise ValueError(f"width={width}: wanted at least 1 tap")
        settings = {"bias": True, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.convolution = ShortConvolution(d_model, width, implementation=implementation, **settings)
        self.gate = Linear(d_model, d_model, **settings)
        self.sizes, self.dtype = (d_model, width), param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        y, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        return y * self.gate(x) + x.astype(y.dtype), next_state(state, segment_ids, tail=tail)

    def init_state(self, batch, max_length=None, dtype=None) -> BaseConvState:
        """An empty tail; `max_length` has no bearing on its size."""
        tail = self.convolution.init_state(batch, self.dtype if dtype is None else dtype)
        return BaseConvState(tail, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        return 2 * batch * length * self.sizes[0] ** 2
