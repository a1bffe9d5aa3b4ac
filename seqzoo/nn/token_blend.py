"""Data-dependent token shift of RWKV-6: blends of a token and the one before it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.linear import Linear


class TokenBlend(nnx.Module):
    """x^i_t = x_t + (x_{t-1} - x_t) * (mu_i + tanh((x_t + (x_{t-1} - x_t) * mu) A) B_i) for i = 0, 1, ...: RWKV-6's.

    Args:
      base: mu [d] at the start.
      starts: mu_i [count, d] at the start; one row per blend.
      rank: inner width of each A B_i. A starts at zero, B_i uniform within 0.01.
      dtype: of the computation; None promotes x and A.
      param_dtype: of all parameters.
    Source: Peng et al. 2024, arXiv:2404.05892, and the authors' code.
    """

    def __init__(self, base: Array, starts: Array, rank: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        count, d = starts.shape
        zero = jax.nn.initializers.zeros
        self.base = nnx.Param(base.astype(param_dtype), axes=("embed",))
        self.starts = nnx.Param(starts.astype(param_dtype), axes=(None, "embed"), decay=False)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.down = Linear(d, count * rank, axes=("embed", None), init=zero, **settings)
        self.up = nnx.Param(small(rngs.params(), (count, rank, d), param_dtype), axes=(None, None, "embed"))
        self.flops_per_token = 4 * count * rank * d

    def __call__(self, x: Array, previous: Array) -> list[Array]:
        """x and the tokens before, [b, t, d] -> one [b, t, d] in x's dtype per blend."""
        back = previous.astype(x.dtype) - x
        low = jnp.tanh(self.down(x + back * self.base[...].astype(x.dtype)[None, None]))
        shares = jnp.einsum("btir,ird->ibtd", low.reshape(*x.shape[:2], len(self.up), -1), self.up[...].astype(low.dtype))
        shares = shares + self.starts[...].astype(shares.dtype)[:, None, None]
        return [x + back * share.astype(x.dtype) for share in shares]


def small(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform within 0.01: RWKV's initialiser of the second factor of a low-rank map."""
    return jax.random.uniform(key, shape, dtype, -0.01, 0.01)
