r"""Block tree of a chunk: decays and lower triangular matrices made from those of two halves, level by level.

A chunk of c = 2^n tokens is cut into blocks of 1, 2, 4, ..., c tokens; a block of each level joins two of the level before:

    level 3                1  2  3  4  5  6  7  8
    level 2                1  2  3  4 |5  6  7  8
    level 1                1  2 |3  4 |5  6 |7  8
    level 0 (tokens)       1 |2 |3 |4 |5 |6 |7 |8

Arrays of a level are [z, blocks, rows, width]; z counts chunks, batch rows and heads as one axis.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..common import xla_cpu


def halves(x: Array) -> tuple[Array, Array]:
    """Splits blocks [z, 2 n, rows, width] into the first of every two, and the second."""
    z, blocks, rows, width = x.shape
    first, second = lax.split(x.reshape(z, blocks // 2, 2 * rows, width), (rows, rows), axis=2)
    return first, second


def join(first: Array, second: Array) -> Array:
    """Joins blocks of rows to half as many blocks of twice as many rows."""
    return jnp.concatenate([first, second], axis=-2)


def times(x: Array | None, y: Array) -> Array:
    """Computes x * y. None is 1; x may have a single row or column for all of y's."""
    return y if x is None else xla_cpu.broadcast(x, y.shape) * y


@jax.custom_vjp
def block_decays(g: Array) -> list[Array]:
    """Decays of whole blocks of 1, 2, 4, ..., c tokens from log decays [z, c, w]: a list of [z, blocks, 1, w]."""
    decays = [jnp.exp(g)[:, :, None]]
    while decays[-1].shape[1] > 1:
        first, second = halves(decays[-1])
        decays.append(first * second)
    return decays


def _block_decays_forward(g):
    decays = block_decays(g)
    return decays, decays


def _block_decays_backward(decays, d):
    """The gradient of an exponent of a product of exponentials: the product times its gradient, summed over the levels."""
    z, c, _, width = decays[0].shape
    per_token = (jnp.broadcast_to(x * dx, (z, x.shape[1], c // x.shape[1], width)) for x, dx in zip(decays, d, strict=True))
    return (xla_cpu.materialise(sum(x.reshape(z, c, width) for x in per_token)),)


block_decays.defvjp(_block_decays_forward, _block_decays_backward)


def decay_mask(decay: Array, read_before_write: bool) -> tuple[Array, Array, Array, Array]:
    """Decays between the tokens of a chunk, from one decay per token [z, c, 1].

    Returns:
      mask [z, c, c]: D_ij = decay_{j+1} ... decay_i for j <= i, else 0; read before the write D_{i-1,j} for j < i, else 0.
      decay_from_start [z, c, 1]: D_i0, or D_{i-1,0}.
      decay_to_end [z, c, 1]: D_cj.
      chunk_decay [z, 1, 1]: D_c0.
    """
    block = decay[..., None]  # [z, blocks, 1, 1], of single tokens
    one = jnp.ones_like(block)
    mask, from_start, to_end = (0 * one, one, one) if read_before_write else (one, block, one)
    while block.shape[-3] > 1:
        (mask_1, mask_2), (start_1, start_2), (end_1, end_2), (block_1, block_2) = map(halves, (mask, from_start, to_end, block))
        mask = lower_triangle(mask_1, mask_2, start_2 * jnp.swapaxes(end_1, -1, -2))
        from_start = join(start_1, block_1 * start_2)
        to_end, block = join(end_1 * block_2, end_2), block_1 * block_2
    return mask[:, 0], from_start[:, 0], to_end[:, 0], block[:, 0]


def lower_triangle(upper_left: Array, lower_right: Array, lower_left: Array) -> Array:
    """Joins the parts of lower triangular matrices: those of their halves, and the square of the second half by the first."""
    upper = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], axis=-1)
    return join(upper, jnp.concatenate([lower_left, lower_right], axis=-1))


def join_triangle(diagonal: Array, squares: list[Array]) -> Array:
    """Joins the diagonal [z, c, 1, 1] and the squares of each level to lower triangular matrices [z, c, c]."""
    for square in squares:
        diagonal = lower_triangle(*halves(diagonal), square)
    return diagonal[:, 0]


def split_triangle(matrix: Array) -> tuple[Array, list[Array]]:
    """The inverse of `join_triangle`."""
    blocks, squares = matrix[:, None], []
    while (rows := blocks.shape[-1] // 2) > 0:
        squares.append(blocks[..., rows:, :rows])
        pairs = jnp.stack([blocks[..., :rows, :rows], blocks[..., rows:, rows:]], axis=2)
        blocks = pairs.reshape(len(matrix), -1, rows, rows)
    return blocks, squares[::-1]


def inverse(m: Array) -> Array:
    r"""Computes T = (I - M)^{-1} [z, c, c] of strictly lower triangular M [z, c, c].

        I - [M_1  0 ]       [     T_1       0 ]
            [ R  M_2]  -->  [ T_2 R T_1   T_2 ]        and one step of Newton's iteration against rounding, T + T (I - T + M T)

    The power series I + M + M^2 + ... would lose all digits where keys resemble each other.
    """
    diagonal, squares = split_triangle(m)
    blocks = jnp.ones_like(diagonal)
    for square in squares:
        first, second = halves(blocks)
        blocks = lower_triangle(first, second, _matmul(_matmul(second, square), first))
    t = blocks[:, 0]
    return t + _matmul(t, jnp.eye(m.shape[-1], dtype=m.dtype)[None] - t + _matmul(m, t))


_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
