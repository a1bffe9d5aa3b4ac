"""The short causal convolution that many recurrent mixers put before their scan."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.convolution import short_convolution


class ShortConvolution(nnx.Module):
    """Depthwise causal convolution along time: y_t = b + sum_j w[width - 1 - j] x_{t-j}.

    Its state, the tail [b, width - 1, width of x], holds the last real tokens of the current document, the latest last.
    """

    def __init__(
        self,
        d: int,
        width: int,
        *,
        bias: bool = True,
        axis: str | None = "heads",
        implementation: str | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        bound = width**-0.5  # the framework's default for a depthwise kernel: fan_in is the width
        uniform = lambda shape: jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound)
        self.w = nnx.Param(uniform((width, d)), axes=(None, axis))
        self.b = nnx.Param(uniform((d,)), axes=(axis,)) if bias else None
        self.tail, self.implementation, self.dtype = (width - 1, d), implementation, dtype

    def __call__(self, x: Array, *, tail: Array | None, segment: Array | None, segment_ids: Array | None) -> tuple[Array, Array]:
        """[b, t, d] -> ([b, t, d], the tail after the call). `segment` is the last id seen before it."""
        dtype = self.dtype or jnp.result_type(x, self.w[...])
        bias = None if self.b is None else self.b[...].astype(dtype)
        return short_convolution(
            x.astype(dtype),
            self.w[...].astype(dtype),
            bias,
            initial_state=tail,
            initial_segment=segment,
            segment_ids=segment_ids,
            implementation=self.implementation,
        )

    def init_state(self, batch: int, dtype: Any) -> Array:
        """The empty tail."""
        return jnp.zeros((batch, *self.tail), dtype)
