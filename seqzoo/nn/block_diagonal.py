"""A projection whose matrix is block-diagonal: every head sees its own channels alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.linear import torch_uniform


class BlockDiagonal(nnx.Module):
    """y = x W + b with W of `heads` blocks on the diagonal: d_in d_out / heads weights, and as many multiply-adds per token.

    Args:
      d_in, d_out: widths.
      heads: number of blocks.
      bias: whether there is a b (zero at the start).
      init: initialiser of each block, [d_in / heads, d_out / heads].
      dtype: of the computation; None promotes x and W.
      param_dtype: of W [heads, d_in / heads, d_out / heads] and b [heads, d_out / heads].
    Raises:
      ValueError: heads does not divide both widths.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        heads: int,
        bias: bool = False,
        init: Callable = torch_uniform,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if heads < 1 or d_in % heads or d_out % heads:
            raise ValueError(f"heads={heads} does not divide the widths {d_in} and {d_out}: change heads")
        block = lambda key: init(key, (d_in // heads, d_out // heads), param_dtype)
        self.w = nnx.Param(jax.vmap(block)(jax.random.split(rngs.params(), heads)), axes=("heads", None, None))
        self.b = nnx.Param(jnp.zeros((heads, d_out // heads), param_dtype), axes=("heads", None), decay=False) if bias else None
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """[..., d_in] -> [..., d_out]."""
        w = self.w[...]
        dtype = self.dtype or jnp.result_type(x, w)
        blocks = x.astype(dtype).reshape(*x.shape[:-1], w.shape[0], -1)
        y = jnp.einsum("...hi,hij->...hj", blocks, w.astype(dtype))
        if self.b is not None:
            y = y + jnp.expand_dims(self.b[...].astype(dtype), range(y.ndim - 2))
        return y.reshape(*x.shape[:-1], -1)
