"""BaseConv: a short convolution, gated by a projection of the token itself."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from seqzoo.mixers.base import Mixer, next_state, register
from seqzoo.nn import Linear, ShortConvolution
from seqzoo.specs import Size

Implementation = Literal["reference", "xla"]
"""Name of an implementation of `seqzoo.kernels.convolution`."""


class BaseConvState(NamedTuple):
    """Last inputs of the convolution."""

    tail: Array  # [b, conv_size - 1, d]
    segment: Array  # [b] int32, the document it belongs to


@register("base_conv")
class BaseConv(Mixer):
    r"""BaseConv (Arora et al. 2023, arXiv:2312.04927), the gated convolution to which the paper reduces others.

        y_t = (c + sum_j w_j * x_{t-j}) * (W x_t + b) + x_t        j = 0 ... conv_size - 1, elementwise

    Use it in front of a mixer that compares tokens and has no convolution of its own, such as `based`: a token then knows the one
    before it. Alone it sees no further than conv_size - 1 tokens per layer.

    Cost: time O(t d^2 + t d conv_size); state conv_size - 1 inputs per row, independent of t.
    The paper's long filters (as long as the row, made by a small network of the position) are not here.
    """

    conv_size: Size = 3
    """Kernel size of the convolution."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.convolution`; None: the fastest for platform and shape."""

    def setup(self, rngs, depth):
        kwargs = self.factory_kwargs(rngs)
        self.convolution = ShortConvolution(self.d_model, self.conv_size, implementation=self.implementation, **kwargs)
        self.gate = Linear(self.d_model, self.d_model, bias=True, **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        y, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        return y * self.gate(x) + x.astype(y.dtype), next_state(state, segment_ids, tail=tail)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> BaseConvState:
        """An empty tail; `max_length` has no influence on its size."""
        return BaseConvState(self.convolution.init_state(batch, self.cache_dtype(dtype)), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        return 2 * batch * length * self.d_model**2
