"""The short convolution in plain XLA: `width` multiply-adds over shifted views of [tail | x], one pass over the output.

Packed documents are first brought into the same shape: the real tokens move to the front of their row, in order, so that a token's
j-th predecessor is again j rows before it, and a tap across a document's border is masked. The move is a permutation, so that its
transpose is a gather too; left to itself JAX would transpose it into a scatter, which CPUs run row by row.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def shifted(x: Array, weight: Array, bias: Array, tail: Array) -> tuple[Array, Array]:
    """All tokens continue one document. x [b, t, d], tail [b, width - 1, d]; returns (y, tail) in the dtype given."""
    length, width = x.shape[1], weight.shape[0]
    rows = jnp.concatenate([tail, x], axis=1)
    y = sum(weight[i][None, None] * rows[:, i : i + length] for i in range(width))
    return y + bias[None, None], rows[:, length:]


def packed(x: Array, weight: Array, bias: Array, tail: Array, real: Array, start: Array) -> tuple[Array, Array]:
    """As `shifted`, each token seeing only the real tokens of its own document; y means nothing at padding."""
    length, width = x.shape[1], weight.shape[0]
    steps = lax.broadcasted_iota(jnp.int32, real.shape, 1)
    _, order = lax.sort_key_val((~real).astype(jnp.int32), steps, dimension=1, is_stable=True)
    _, inverse = lax.sort_key_val(order, steps, dimension=1)

    rows = jnp.concatenate([tail, _permute(x, order, inverse)], axis=1)
    number = jnp.where(real, jnp.cumsum(start, axis=1, dtype=jnp.int32), -1)  # of the document, from the carried one's 0
    number = jnp.take_along_axis(number, order, axis=1, mode="clip")
    number = jnp.concatenate([jnp.zeros_like(number, shape=tail.shape[:2]), number], axis=1)  # the tail is of the carried one

    y = jnp.zeros_like(x) + bias[None, None]
    for i in range(width):
        same = number[:, i : i + length] == number[:, width - 1 :]
        y = y + weight[i][None, None] * jnp.where(same[:, :, None], rows[:, i : i + length], 0)

    latest = jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32) + lax.broadcasted_iota(jnp.int32, tail.shape[:2], 1)
    current = jnp.max(number, axis=1, keepdims=True, initial=0)
    kept = jnp.take_along_axis(number, latest, axis=1, mode="clip") == current
    tail = jnp.take_along_axis(rows, latest[:, :, None], axis=1, mode="clip")
    return _permute(y, inverse, order), jnp.where(kept[:, :, None], tail, 0)


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    """x [b, t, d] with row order[i] moved to i; `inverse` is the inverse permutation, along which the gradient moves back."""
    return jnp.take_along_axis(x, order[:, :, None], axis=1, mode="clip")


def _permute_forward(x, order, inverse):
    return _permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, dy):
    order, inverse = residuals
    return _permute(dy, inverse, order), None, None


_permute.defvjp(_permute_forward, _permute_backward)
