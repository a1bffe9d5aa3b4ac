"""One token's row of [b, t, ...], read and written inside a loop. XLA updates a loop's carry in place, so `put` copies nothing."""

from jax import Array, lax


def row(x: Array, t: Array, axis: int = 1) -> Array:
    """Row t of axis 1, or of another."""
    return lax.dynamic_index_in_dim(x, t, axis=axis, keepdims=False, allow_negative_indices=False)


def put(x: Array, value: Array, t: Array, axis: int = 1) -> Array:
    """x with row t of axis 1, or of another, set to value, in x's dtype."""
    return lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), t, axis=axis, allow_negative_indices=False)
