"""Soft-capped gates: one per head, with a bounded preactivation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.gates import tanh
from seqzoo.nn.linear import Linear


class SoftCappedGate(nnx.Module):
    """z = c tanh((W x + b) / c), the input of a sigmoid or an exponential (xLSTM 7B, Beck et al. 2025, arXiv:2503.13427).

    Args:
      d_in: width of x.
      bias: initial b, [heads]. W starts at zero.
      cap: c > 0; None: no cap.
      dtype: of the projection; None promotes x and W. z is float32 or wider: a state is a product of many gates.
      param_dtype: of W and b.
    """

    def __init__(
        self, d_in: int, bias: Array, cap: float | None, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        zeros = jax.nn.initializers.zeros
        self.projection = Linear(d_in, len(bias), init=zeros, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.bias = nnx.Param(bias.astype(param_dtype), axes=("heads",))
        self.cap = cap

    def __call__(self, x: Array) -> Array:
        """x [b, t, d_in] -> z [b, t, heads]."""
        z = self.projection(x)
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        z = z + self.bias[...].astype(z.dtype)[None, None]
        return z if self.cap is None else self.cap * tanh(z / self.cap)
