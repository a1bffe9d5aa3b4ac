r"""What a chunk's tokens give each other, and what they do to a state: all chunks at once, for JAX to differentiate.

With A_ij = exp(g_{j+1} + ... + g_i), the decay between two tokens, and S the state before a chunk,

    o_i = \sum_{j <= i} (q_i^T A_ij k_j) v_j  +  fade_i * (reads_i^T S)        S' = decay * S + \sum_j keys_j values_j^T

Decays are multiplied, never divided, and exponents never subtracted: a running sum loses its digits behind a strong reset, and
makes NaN behind an infinite one. A product over many tokens is made from two halves: what the second half's rows see of the first
is *what they see of their own beginning* times *what is left of the first half's rows at its end*. So blocks of two tokens are made
of tokens, blocks of four of those, and so on, with log2(c) batched products of matrices ("secondary chunking", Yang et al., 2023,
arXiv:2312.06635, carried to the end).

Shapes: q, k [z, c, k]; v [z, c, r v]; c tokens, a power of two; z counts chunks, rows and groups of r heads, as one axis: the sums
of a gradient over seven axes crash jaxlib 0.10.2 on CPUs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class Inside(NamedTuple):
    """See above; `decay` is None for no decay."""

    output: Callable[[Array], Array]  # o [z, c, r v], from what the reads find in the state before the chunk
    reads: Array  # [z, c, k]
    keys: Array  # [z, c, k]
    values: Array  # [z, c, r v]
    decay: Array | None  # [z, 1 or k, 1 or r v]


def by_head(dot, q, k, v, decays, exclusive) -> Inside:
    """At most one decay per head, [z, c, r]: a mask on one product of matrices per chunk."""
    scores, g = dot("zik,zjk->zij", q, k), decays.key
    if g is None:
        mask = np.tri(q.shape[1], k=-1 if exclusive else 0, dtype=scores.dtype)[None]
        return Inside(lambda read: read + dot("zij,zjv->ziv", scores * mask, v), q, k, v, None)
    z, c, r = g.shape
    heads = lambda x: jnp.moveaxis(x.reshape(z, c, r, -1), 2, 1).reshape(z * r, c, -1)
    together = lambda x: jnp.moveaxis(x.reshape(z, r, x.shape[1], -1), 1, 2).reshape(z, x.shape[1], -1)
    mask, seen, left, total = _mask(jnp.exp(heads(g)), exclusive)
    scores = (scores[:, None] * mask.reshape(z, r, c, c)).reshape(z * r, c, c)
    v = heads(v)
    output = lambda read: together(spread(seen, v.shape)) * read + together(dot("zij,zjv->ziv", scores, v))
    return Inside(output, q, k, together(spread(left, v.shape) * v), together(spread(total, (z * r, 1, v.shape[-1]))))


def _mask(a, exclusive):
    """From decays [z, c, 1]: A [z, c, c], 0 for pairs that do not meet; fade, what is left at the end, and both of the chunk."""
    total = a[..., None]  # [z, blocks, 1, 1], to begin with of single tokens
    one = jnp.ones_like(total)
    mask, seen, left = (0 * one, one, one) if exclusive else (one, total, one)
    while total.shape[-3] > 1:
        (mask_1, mask_2), (seen_1, seen_2), (left_1, left_2), (total_1, total_2) = map(_halves, (mask, seen, left, total))
        upper = jnp.concatenate([mask_1, jnp.zeros_like(mask_1)], axis=-1)
        lower = jnp.concatenate([seen_2 * jnp.swapaxes(left_1, -1, -2), mask_2], axis=-1)
        mask, seen = _join(upper, lower), _join(seen_1, total_1 * seen_2)
        left, total = _join(left_1 * total_2, left_2), total_1 * total_2
    return tuple(x[:, 0] for x in (mask, seen, left, total))


def by_channel(dot, q, k, v, decays, exclusive) -> Inside:
    """Decays per channel of the keys [z, c, k], of the values [z, c, v], or of both; heads share nothing, and v is [z, c, v]."""
    totals, value_totals = ((None,) if g is None else _totals(g) for g in decays)
    tokens = lambda x: x[..., None, :]  # [z, blocks, rows, width], to begin with single tokens
    if decays.key is None:
        own, scores = _blocks(dot("zik,zjk->zij", q, k))
        own, reads, keys = None if exclusive else own, q, k
    else:
        own, scores, reads, keys = _faded_scores(dot, tokens(q), tokens(k), totals, exclusive)
    if decays.value is None:
        whole = _triangle(own, scores, v)
        output, values = lambda read: read + dot("zij,zjv->ziv", whole, v), v
    else:
        output, values = _fading(dot, own, scores, tokens(v), value_totals)
    of_keys, of_values = (None if total is None else total[:, 0] for total in (totals[-1], value_totals[-1]))
    decay = _times(None if of_keys is None else jnp.swapaxes(of_keys, -1, -2), of_values)
    return Inside(output, reads, keys, values, decay)


def _faded_scores(dot, q, keys, totals, exclusive):
    """Scores q_i^T A_ij k_j of tokens with themselves (None: not read), of every second half of a block with its first, for blocks
    of 2, 4, ... tokens; and the chunk's reads and keys."""
    reads = q if exclusive else _times(totals[0], q)
    own, scores = None if exclusive else _scores(dot, q, keys), []
    for total in totals[:-1]:
        (reads_1, reads_2), (keys_1, keys_2), (total_1, total_2) = map(_halves, (reads, keys, total))
        scores.append(_scores(dot, reads_2, keys_1))
        reads, keys = _join(reads_1, _times(total_1, reads_2)), _join(_times(total_2, keys_1), keys_2)
    return own, scores, reads[:, 0], keys[:, 0]


@jax.custom_vjp
def _totals(g):
    """From log decays [z, c, w]: what tokens keep, what blocks of 2, 4, ..., c tokens keep, each [z, blocks, 1, w]."""
    totals = [jnp.exp(g)[:, :, None]]
    while totals[-1].shape[1] > 1:
        first, second = _halves(totals[-1])
        totals.append(first * second)
    return totals


def _totals_forward(g):
    totals = _totals(g)
    return totals, totals


def _totals_backward(totals, d):
    """Of a product of exponentials, to each exponent: the product times its gradient. JAX's own nests a `concatenate` per level."""
    z, c, _, width = totals[0].shape
    each = (jnp.broadcast_to(x * dx, (z, x.shape[1], c // x.shape[1], width)) for x, dx in zip(totals, d, strict=True))
    return (sum(x.reshape(z, c, width) for x in each),)


_totals.defvjp(_totals_forward, _totals_backward)


def _blocks(whole):
    """The inverse of `_triangle`: from all scores [z, c, c] those of tokens with themselves and of halves with halves."""
    blocks, scores = whole[:, None], []
    while (rows := blocks.shape[-1] // 2) > 0:
        scores.append(blocks[..., rows:, :rows])
        pairs = jnp.stack([blocks[..., :rows, :rows], blocks[..., rows:, rows:]], axis=2)
        blocks = pairs.reshape(len(whole), -1, rows, rows)
    return blocks, scores[::-1]


def _triangle(own, scores, v):
    """All scores in one matrix [z, c, c]."""
    whole = jnp.zeros((*v.shape[:2], 1, 1), v.dtype) if own is None else own
    for score in scores:
        upper, lower = _halves(whole)
        rows = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1), jnp.concatenate([score, lower], axis=-1)
        whole = jnp.concatenate(rows, axis=-2)
    return whole[:, 0]


def _fading(dot, own, scores, v, totals):
    """`output` and `values` of a chunk whose values decay: these from tokens to blocks, as the keys; then outputs from blocks to
    tokens, each half seeing what its block sees at its start, faded to the half's own, and the second half the first besides."""
    values, firsts = v, []
    for total in totals[:-1]:
        (first, second), (_, total_2) = map(_halves, (values, total))
        firsts.append(first)
        values = _join(_times(total_2, first), second)

    def output(seen):
        seen = seen[:, None]
        for score, first, total in zip(*map(reversed, (scores, firsts, totals[:-1])), strict=True):
            seen_1, seen_2 = jnp.split(seen, 2, axis=-2)
            seen_2 = _times(_halves(total)[0], seen_2) + _weigh(dot, score, first)
            seen = _join(seen_1, seen_2).reshape(first.shape[0], -1, *first.shape[2:])
        return (seen if own is None else totals[0] * seen + _weigh(dot, own, v))[:, :, 0]

    return output, values[:, 0]


def _scores(dot, q, k):
    """q k^T within blocks [z, blocks, rows, width]."""
    if q.shape[-2] > 1:
        return dot("zBik,zBjk->zBij", q, k)
    return jnp.einsum("...w,wr->...r", q * k, jnp.ones((q.shape[-1], 1), q.dtype), precision="highest")  # as in `spread`


def _weigh(dot, scores, v):
    """scores v within blocks."""
    return dot("zBij,zBjv->zBiv", scores, v) if v.shape[-2] > 1 else _times(scores, v)


def _times(x, y):
    """x * y, where None is 1."""
    if x is None or y is None:
        return y if x is None else x
    return spread(x, y.shape) * y


def spread(x, shape):
    """x with its one row, or column, repeated to that shape; its gradient by products with ones: XLA on CPUs is slow at sums."""
    for axis in (-2, -1):
        if x.shape[axis] == 1 < shape[axis]:
            x = _repeat(x, axis, shape[axis])
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _repeat(x, axis, size):
    return jnp.broadcast_to(x, (*x.shape[:-2], size, x.shape[-1]) if axis == -2 else (*x.shape[:-1], size))


def _repeat_forward(x, axis, size):
    return _repeat(x, axis, size), None


def _repeat_backward(axis, size, _, d):
    ones, spec = jnp.ones((size, 1), d.dtype), "...rw,ri->...iw" if axis == -2 else "...wr,ri->...wi"
    return (jnp.einsum(spec, d, ones, precision="highest"),)


_repeat.defvjp(_repeat_forward, _repeat_backward)


def _halves(x):
    """Blocks [z, 2 n, rows, width] -> the first of every two, and the second."""
    z, blocks, rows, width = x.shape
    return lax.split(x.reshape(z, blocks // 2, 2 * rows, width), (rows, rows), axis=2)


def _join(first, second):
    """Blocks of rows -> half as many blocks of twice as many rows."""
    return jnp.concatenate([first, second], axis=-2)
