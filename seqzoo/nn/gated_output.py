"""Output of a state-space layer: an activation and a gated linear unit, because the model itself is linear."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.nn.linear import Linear

Glu = Literal["full", "half", "half2", "none", "linear"]
"""Parts of the gated linear unit: both projections, the gate alone, the gate alone on an input without gelu, or none, with gelu or
without."""


class GatedOutput(nnx.Module):
    """With u = gelu(y): "full" (W u + b) * sigmoid(V u + c), "half" u * sigmoid(V u + c), "half2" y * sigmoid(V u + c), "none" u,
    "linear" y.

    Args:
      width: of y and the output.
      glu: which of the five.
      approximate: whether gelu is the tanh formula.
      dtype: of the projections; None promotes y and their weights.
      param_dtype: of the parameters.
    """

    def __init__(
        self, width: int, glu: Glu, *, approximate: bool, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        make = lambda: Linear(width, width, axes=("embed", "heads"), bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.value = make() if glu == "full" else None
        self.gate = None if glu in ("none", "linear") else make()
        self.gelu = glu not in ("half2", "linear")  # whether the output has it, apart from its gate
        projections = [projection for projection in (self.value, self.gate) if projection is not None]
        self.approximate, self.flops_per_token = approximate, 2 * width * width * len(projections)

    def __call__(self, y: Array) -> Array:
        """[..., width] -> [..., width]."""
        u = jax.nn.gelu(y, approximate=self.approximate)
        value = u if self.gelu else y
        if self.gate is None:
            return value
        return (value if self.value is None else self.value(u)) * jax.nn.sigmoid(self.gate(u))
