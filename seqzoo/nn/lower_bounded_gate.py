"""Forget gates with a lower bound, which is learned or fixed."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

LOWEST = 0.01  # a learned bound starts no lower; zero is infinitely far from any bound that a logit can reach


class LowerBoundedGate(nnx.Module):
    """f = gamma + (1 - gamma) sigmoid(z), as (log f, 1 - f), neither computed as a difference (Qin et al. 2023, arXiv:2311.04823).

    Args:
      width: of z; there is one gamma per channel.
      lower_bound: gamma in [0, 1), fixed. None: learned, sigmoid of a logit, initially index / count of `depth`, at least LOWEST.
      depth: (index, count) of the layer, or None: not known; the index may be traced.
      param_dtype: of the logit.
    """

    def __init__(self, width: int, lower_bound: float | None, *, depth: tuple[Any, int] | None, param_dtype: Any):
        index, count = (0, 1) if depth is None else depth
        start = jax.scipy.special.logit(jnp.maximum(jnp.asarray(index, jnp.float32) / count, LOWEST))
        logit = jnp.broadcast_to(start, (width,)).astype(param_dtype)
        self.logit = nnx.Param(logit, axes=("heads",), decay=False) if lower_bound is None else None
        self.lower_bound = lower_bound

    def __call__(self, z: Array) -> tuple[Array, Array]:
        """z [b, t, width] -> (log f, 1 - f), each [b, t, width] in float32 or wider."""
        z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        if self.logit is not None:
            logit = self.logit[...].astype(z.dtype)[None, None]
            log_bound, log_complement = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
        elif self.lower_bound:
            log_bound, log_complement = math.log(self.lower_bound), math.log1p(-self.lower_bound)
        else:
            return jax.nn.log_sigmoid(z), jax.nn.sigmoid(-z)
        return jnp.logaddexp(log_bound, log_complement + jax.nn.log_sigmoid(z)), jnp.exp(log_complement) * jax.nn.sigmoid(-z)
