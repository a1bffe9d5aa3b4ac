"""Read and write one token of [b, t, ...] inside a loop. XLA updates a loop's carry in place, so `set_step` copies nothing."""

from jax import Array, lax


def get_step(x: Array, t: Array | int, axis: int = 1) -> Array:
    """Element t of axis 1, or of another axis."""
    return lax.dynamic_index_in_dim(x, t, axis=axis, keepdims=False, allow_negative_indices=False)


def set_step(x: Array, value: Array, t: Array | int, axis: int = 1) -> Array:
    """x with element t of axis 1, or of another axis, set to value in x's dtype."""
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), t, axis=axis, allow_negative_indices=False)
