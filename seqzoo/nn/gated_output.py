"""What follows a state-space model, which is linear and mixes no channels or few: an activation and a gate."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.linear import Linear
from seqzoo.specs import choice

Glu = Literal["full", "half", "none"]
PROJECTIONS = {"full": 2, "half": 1, "none": 0}


class GatedOutput(nnx.Module):
    """With u = gelu(y): "full" (W u + b) * sigmoid(V u + c), "half" u * sigmoid(V u + c), "none" u.

    Args:
      width: of y and the output.
      glu: which of the three.
      approximate: whether gelu is the tanh formula.
    Raises:
      ValueError: glu is none of the three.
    """

    def __init__(
        self, width: int, glu: Glu, *, approximate: bool, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        make = lambda: Linear(width, width, axes=("embed", "heads"), bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.value = make() if glu == "full" else None
        self.gate = None if glu == "none" else make()
        self.approximate, self.flops_per_token = approximate, 2 * width * width * PROJECTIONS[choice("glu", glu, PROJECTIONS)]

    def __call__(self, y: Array) -> Array:
        """[..., width] -> [..., width]."""
        u = jax.nn.gelu(y, approximate=self.approximate)
        if self.gate is None:
            return u
        return (u if self.value is None else self.value(u)) * jax.nn.sigmoid(self.gate(u))
