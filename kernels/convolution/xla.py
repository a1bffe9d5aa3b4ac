"""The short convolution in plain XLA: `width` multiply-adds over shifted views of [tail | x], one pass over the output.

With packed documents the real tokens first move to the front of their row, in order. Then the j-th real token before a token is j
places before it, and products across the border of a document are masked. The move is a permutation, so its gradient is a gather
along the inverse; JAX's own is a scatter, which CPUs run element by element. Cost: O(b t d width) time, and with packed documents
two sorts of [b, t] and a copy of x and of y.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def shifted(x: Array, weight: Array, bias: Array, tail: Array) -> tuple[Array, Array]:
    """Convolves one document per row. x [b, t, d], tail [b, width - 1, d]; returns (y, tail) in the dtype given."""
    length, width = x.shape[1], weight.shape[0]
    tokens = jnp.concatenate([tail, x], axis=1)
    y = sum(weight[i][None, None] * tokens[:, i : i + length] for i in range(width))
    return y + bias[None, None], tokens[:, length:]


def packed(x: Array, weight: Array, bias: Array, tail: Array, real: Array, start: Array) -> tuple[Array, Array]:
    """Convolves packed documents, as `shifted` but with the real tokens of a token's own document; y is undefined at padding."""
    length, width = x.shape[1], weight.shape[0]
    steps = lax.broadcasted_iota(jnp.int32, real.shape, 1)
    _, order = lax.sort_key_val((~real).astype(jnp.int32), steps, dimension=1, is_stable=True)
    _, inverse = lax.sort_key_val(order, steps, dimension=1)

    tokens = jnp.concatenate([tail, _permute(x, order, inverse)], axis=1)
    segment = jnp.where(real, jnp.cumsum(start, axis=1, dtype=jnp.int32), -1)  # 0 is the document of the tail
    segment = jnp.take_along_axis(segment, order, axis=1, mode="clip")
    segment = jnp.concatenate([jnp.zeros_like(segment, shape=tail.shape[:2]), segment], axis=1)

    y = jnp.zeros_like(x) + bias[None, None]
    for i in range(width):
        same = segment[:, i : i + length] == segment[:, width - 1 :]
        y = y + weight[i][None, None] * jnp.where(same[:, :, None], tokens[:, i : i + length], 0)

    latest = jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32) + lax.broadcasted_iota(jnp.int32, tail.shape[:2], 1)
    current = jnp.max(segment, axis=1, keepdims=True, initial=0)
    of_current = jnp.take_along_axis(segment, latest, axis=1, mode="clip") == current
    tail = jnp.take_along_axis(tokens, latest[:, :, None], axis=1, mode="clip")
    return _permute(y, inverse, order), jnp.where(of_current[:, :, None], tail, 0)


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    """Permutes the tokens of x [b, t, d]: token order[i] moves to i. Its gradient is the permutation by `inverse`."""
    return jnp.take_along_axis(x, order[:, :, None], axis=1, mode="clip")


def _permute_forward(x, order, inverse):
    return _permute(x, order, inverse), (order, inverse)


def _permute_backward(residuals, dy):
    order, inverse = residuals
    return _permute(dy, inverse, order), None, None


_permute.defvjp(_permute_forward, _permute_backward)
