"""The dense projection, with axis names that a sharding table can read."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.common.xla_cpu import matmul

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what "the framework's default" means in most released code.
torch_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def output_init(depth: tuple[Any, int] | None) -> Callable:
    """Initialiser of a residual branch's last projection: torch_uniform, over sqrt(layers) if `depth` (index, layers) is known."""
    if depth is None:
        return torch_uniform
    return lambda key, shape, dtype: torch_uniform(key, shape, dtype) / math.sqrt(depth[1])


class Linear(nnx.Module):
    """y = x W + b.

    Args:
      d_in, d_out: widths.
      axes: names of W's two axes, read by the sharding rules.
      bias: adds b, zero at the start.
      init: initialiser of W.
      decay: applies weight decay to W.
      dtype: of the computation; None promotes x and W.
      param_dtype: of W and b.
    Raises:
      ValueError: a width of 0, as a very small expansion gives.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None] = ("embed", "heads"),
        bias: bool = False,
        init: Callable = torch_uniform,
        decay: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if d_in < 1 or d_out < 1:
            raise ValueError(f"a projection from {d_in} to {d_out} values; wanted at least 1 of each: a larger width or expansion")
        self.w = nnx.Param(init(rngs.params(), (d_in, d_out), param_dtype), axes=axes, decay=decay)
        self.b = nnx.Param(jnp.zeros((d_out,), param_dtype), axes=axes[1:]) if bias else None
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """[..., d_in] -> [..., d_out]."""
        dtype = self.dtype or jnp.result_type(x, self.w[...])
        y = matmul(x.astype(dtype), self.w[...].astype(dtype))
        if self.b is not None:
            y = y + jnp.expand_dims(self.b[...].astype(dtype), range(y.ndim - 1))
        return y
