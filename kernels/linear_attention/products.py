"""Products of matrices."""

import jax.numpy as jnp
from jax import Array, lax


def product(spec: str, x: Array, y: Array, precision: lax.Precision) -> Array:
    """`jnp.einsum(spec, x, y)` in x's dtype, whatever y's."""
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=x.dtype)
