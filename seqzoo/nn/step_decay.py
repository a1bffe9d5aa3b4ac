"""Decay of Mamba-2 (A_log, dt_bias), also used by gated delta rules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.timestep import timestep_bias


class StepDecay(nnx.Module):
    """g = -A softplus(z + b) <= 0, per head or per channel of a head; A > 0 one number per head (Dao & Gu 2024, arXiv:2405.21060).

    Args:
      heads: number of heads.
      width: channels of a head, 1 for one decay per head.
      low: A is drawn uniformly from [low, 16].
      param_dtype: of A's logarithm and b. softplus(b) is log-uniform in [0.001, 0.1] at the start.
    """

    def __init__(self, heads: int, width: int = 1, *, low: float, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        a = jax.random.uniform(rngs.params(), (heads,), param_dtype, low, 16.0)
        self.a_log = nnx.Param(jnp.log(a), axes=("heads",), decay=False)
        self.bias = nnx.Param(timestep_bias(rngs.params(), (heads * width,), param_dtype), axes=("heads",), decay=False)

    def __call__(self, z: Array) -> Array:
        """[b, t, heads width] -> [b, t, heads] for width 1, else [b, t, heads, width]; float32 or wider."""
        wide = jnp.promote_types(z.dtype, jnp.float32)
        steps = jax.nn.softplus(z.astype(wide) + self.bias[...].astype(wide)[None, None])
        a = jnp.exp(self.a_log[...].astype(wide))
        steps = steps.reshape(*z.shape[:2], len(a), -1) * -a[None, None, :, None]
        return steps[..., 0] if steps.shape[-1] == 1 else steps
