"""Short causal convolution, which many recurrent mixers apply before their recurrence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.convolution import short_convolution


class ShortConvolution(nnx.Module):
    """Depthwise causal convolution along time: y_t = b + sum_j w[n - 1 - j] x_{t-j} for kernels of n = conv_size numbers.

    Its state, the tail [b, n - 1, d], holds the last real tokens of the current document, the latest last.

    Args:
      d: number of channels.
      conv_size: n.
      bias: whether there is a b.
      axis: name of the axis of channels.
      init: initialiser of w [n, d]; None: w and b uniform within 1 / sqrt(n), else b is zero at the start.
      implementation: of the op `seqzoo.kernels.convolution`; None: the fastest for the platform.
      dtype: of the computation; None promotes x and w.
      param_dtype: of w and b.
    """

    def __init__(
        self,
        d: int,
        conv_size: int,
        *,
        bias: bool = True,
        axis: str | None = "heads",
        init: Callable | None = None,
        implementation: str | tuple[str, ...] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if conv_size < 1:
            raise ValueError(f"conv_size={conv_size}: wanted at least 1")
        bound = conv_size**-0.5  # the framework's default for a depthwise kernel: fan_in is its size
        uniform = lambda shape: jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound)
        w = uniform((conv_size, d)) if init is None else init(rngs.params(), (conv_size, d), param_dtype)
        self.w = nnx.Param(w, axes=("conv_kernel", axis))
        start = uniform if init is None else lambda shape: jnp.zeros(shape, param_dtype)
        self.b = nnx.Param(start((d,)), axes=(axis,)) if bias else None
        self.tail_size, self.channels, self.implementation, self.dtype = conv_size - 1, d, implementation, dtype

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
        return jnp.zeros((batch, self.tail_size, self.channels), dtype)
