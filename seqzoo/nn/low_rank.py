"""Low-rank maps: a gate per channel at a fraction of its cost."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.linear import Linear, torch_uniform


class LowRank(nnx.Module):
    """y = activation(x A) B + c.

    Args:
      d_in, rank, d_out: widths.
      activation: between the two matrices; None: none.
      bias: initial c, [d_out]; None: no c.
      down_init, up_init: initialisers of A and B.
      dtype: of the products; None promotes x and the weights. With a bias, y is float32 or wider: it may become a decay.
      param_dtype: of all parameters.
    """

    def __init__(
        self,
        d_in: int,
        rank: int,
        d_out: int,
        *,
        activation: Callable | None = None,
        bias: Array | None = None,
        down_init: Callable = torch_uniform,
        up_init: Callable = torch_uniform,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.down = Linear(d_in, rank, axes=("embed", None), init=down_init, **kwargs)
        self.up = Linear(rank, d_out, axes=(None, "heads"), init=up_init, **kwargs)
        self.bias = None if bias is None else nnx.Param(bias.astype(param_dtype), axes=("heads",), decay=False)
        self.activation, self.flops_per_token = activation, 2 * rank * (d_in + d_out)

    def __call__(self, x: Array) -> Array:
        """[b, t, d_in] -> [b, t, d_out]."""
        low = self.down(x)
        y = self.up(low if self.activation is None else self.activation(low))
        if self.bias is None:
            return y
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return y + self.bias[...].astype(y.dtype)[None, None]
