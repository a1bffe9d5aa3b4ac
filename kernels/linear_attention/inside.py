r"""What a chunk's tokens give each other, and what they do to a state: all chunks at once, for JAX to differentiate.

With A_ij = exp(g_{j+1} + ... + g_i), the decay between two tokens, and S the state before a chunk,

    o_i = \sum_{j <= i} (q_i^T A_ij k_j) v_j  +  fade_i * (reads_i^T S)        S' = decay * S + \sum_j keys_j values_j^T

Decays are multiplied, never divided, and exponents never subtracted: a running sum loses its digits behind a strong reset, and
makes NaN behind an infinite one. A product over many tokens is made from two halves: what the second half's rows see of the first
is *what they see of their own beginning* times *what is left of the first half's rows at its end*. So blocks of two tokens are made
of tokens, blocks of four of those, and so on, with log2(c) batched products of matrices ("secondary chunking", Yang et al., 2023,
arXiv:2312.06635, carried to the end).

A low-rank term b_i (a_i^T S_{i-1}) is one more key b_i, whose value u_i is what a_i reads of the state and of the chunk. It reads
the u_j before it, too: all of them are (I - M)^{-1} of the rest, M_ij = a_i^T A_{i-1,j} b_j for j < i. The inverse is made of those
of two halves, as all else here; its power series loses all digits where keys resemble each other.

Shapes: q, k, a, b [z, c, k]; v [z, c, r v]; c tokens, a power of two; z counts chunks, rows and groups of r heads, as one axis: the
sums of a gradient over seven axes crash jaxlib 0.10.2 on CPUs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class LowRank(NamedTuple):
    """u = (I - M)^{-1} (rest + reads S), and what is written of it: keys^T u."""

    scores: Array  # M [z, c, c]
    reads: Array  # [z, c, k]
    rest: Array  # [z, c, v]
    keys: Array  # [z, c, k]


class Inside(NamedTuple):
    """See above."""

    output: Callable[[Array, Array | None], Array]  # o [z, c, r v], from what reads find in the state before the chunk, and u
    reads: Array  # [z, c, k]
    written: tuple[Array, Array] | None  # keys [z, c, k] and values [z, c, r v]; None: u is all that is written
    decay: Array | None  # [z, 1 or k, 1 or r v]; None: 1
    low_rank: LowRank | None = None


def by_head(dot, q, k, v, transition, exclusive) -> Inside:
    """At most one decay per head, [z, c, r]: a mask on one product of matrices per chunk."""
    scores, g = dot("zik,zjk->zij", q, k), transition.key
    if g is None:
        mask = np.tri(q.shape[1], k=-1 if exclusive else 0, dtype=scores.dtype)[None]
        return Inside(lambda read, _: read + dot("zij,zjv->ziv", scores * mask, v), q, (k, v), None)
    z, c, r = g.shape
    heads = lambda x: jnp.moveaxis(x.reshape(z, c, r, -1), 2, 1).reshape(z * r, c, -1)
    together = lambda x: jnp.moveaxis(x.reshape(z, r, x.shape[1], -1), 1, 2).reshape(z, x.shape[1], -1)
    mask, seen, left, total = _mask(jnp.exp(heads(g)), exclusive)
    scores = (scores[:, None] * mask.reshape(z, r, c, c)).reshape(z * r, c, c)
    v = heads(v)
    output = lambda read, _: together(spread(seen, v.shape)) * read + together(dot("zij,zjv->ziv", scores, v))
    return Inside(output, q, (k, together(spread(left, v.shape) * v)), together(spread(total, (z * r, 1, v.shape[-1]))))


def _mask(a, exclusive):
    """From decays [z, c, 1]: A [z, c, c], 0 for pairs that do not meet; fade, what is left at the end, and both of the chunk."""
    total = a[..., None]  # [z, blocks, 1, 1], to begin with of single tokens
    one = jnp.ones_like(total)
    mask, seen, left = (0 * one, one, one) if exclusive else (one, total, one)
    while total.shape[-3] > 1:
        (mask_1, mask_2), (seen_1, seen_2), (left_1, left_2), (total_1, total_2) = map(_halves, (mask, seen, left, total))
        mask = _lower(mask_1, mask_2, seen_2 * jnp.swapaxes(left_1, -1, -2))
        seen = _join(seen_1, total_1 * seen_2)
        left, total = _join(left_1 * total_2, left_2), total_1 * total_2
    return tuple(x[:, 0] for x in (mask, seen, left, total))


def by_channel(dot, q, k, v, transition, exclusive) -> Inside:
    """Decays per channel of the keys [z, c, k], of the values [z, c, v], or of both; heads share nothing, and v is [z, c, v]."""
    ((scores,),), (reads,), (keys,), decay = _meet([(dot, q, exclusive)], [k], transition.key)
    if transition.value is None:
        return Inside(lambda read, _: read + dot("zij,zjv->ziv", scores, v), reads, (keys, v), decay)
    totals = _totals(transition.value)
    output, values = _fading(dot, scores, v, totals, exclusive)
    return Inside(output, reads, (keys, values), _times(decay, totals[-1][:, 0]))


def low_rank(dot, q, k, v, transition, exclusive) -> Inside:
    """With a and b [z, c, k] (b None: k), and decays None, [z, c, 1] or [z, c, k]; heads share nothing, and v is [z, c, v]."""
    writers = [k] if transition.b is None else [transition.b, k]
    careful = _in_four(dot) if q.shape[1] > 32 else dot
    readers = [(dot, q, exclusive), (careful, transition.a, True)]
    scores, (reads, a_reads), keys, decay = _meet(readers, writers, transition.key)
    (of_q, *of_q_k), (of_a, *of_a_k) = scores
    rest = v if transition.b is None else dot("zij,zjv->ziv", of_a_k[0], v)
    terms = LowRank(of_a, a_reads, rest, keys[0])
    of_u = lambda read, u: read + dot("zij,zjv->ziv", of_q, u)
    if transition.b is None:  # a token's key is that of its u, too, so u has v in it
        return Inside(of_u, reads, None, decay, terms)
    o = dot("zij,zjv->ziv", of_q_k[0], v)
    return Inside(lambda read, u: o + of_u(read, u), reads, (keys[1], v), decay, terms)


def _meet(readers, writers, g):
    """What readers [(dot, rows [z, c, k], exclusive), ...] find of each writer [z, c, k]: scores [z, c, c], by reader and writer.
    Then the rows of both as of the chunk's borders, and the chunk's decay. g is None, [z, c, 1] or [z, c, k]."""
    if g is not None and g.shape[-1] > 1:
        totals = _totals(g)
        reading = [(dot, _reading(rows, totals, exclusive)) for dot, rows, exclusive in readers]
        writing = [_writing(rows, totals) for rows in writers]
        scores = [[_triangle(*_scores_of_blocks(dot, read, written)) for written in writing] for dot, read in reading]
        reads, keys = [read[-1] for _, read in reading], [written[-1] for written in writing]
        return scores, reads, keys, jnp.swapaxes(totals[-1][:, 0], -1, -2)
    if g is None:
        c = writers[0].shape[1]
        masks = [np.tri(c, k=-int(exclusive), dtype=rows.dtype)[None] for _, rows, exclusive in readers]
        reads, keys, total = [rows for _, rows, _ in readers], writers, None
    else:
        mask, seen, left, total = _mask(jnp.exp(g), exclusive=False)
        before = lambda x, first: jnp.concatenate([jnp.full_like(x[:, :1], first), x[:, :-1]], axis=1)
        masks = [before(mask, 0) if exclusive else mask for _, _, exclusive in readers]
        reads = [_times(before(seen, 1) if exclusive else seen, rows) for _, rows, exclusive in readers]
        keys = [_times(left, rows) for rows in writers]
    scores = [
        [dot("zik,zjk->zij", rows, written) * mask for written in writers]
        for (dot, rows, _), mask in zip(readers, masks, strict=True)
    ]
    return scores, reads, keys, total


def _reading(q, totals, exclusive):
    """Rows that read: as they meet their own token (None: not), the second halves of blocks of 2, 4, ... tokens, each as of its
    half's start, and all as of the chunk's, [z, c, k]."""
    tokens = reads = q[..., None, :]  # [z, blocks, rows, k], to begin with single tokens
    reads, halves = reads if exclusive else _times(totals[0], reads), []
    for total in totals[:-1]:
        (first, second), (total_1, _) = _halves(reads), _halves(total)
        halves.append(second)
        reads = _join(first, _times(total_1, second))
    return None if exclusive else tokens, halves, reads[:, 0]


def _writing(k, totals):
    """Rows that write: single tokens, first halves of blocks of 2, 4, ... tokens, each as of its half's end, and all as of the
    chunk's, [z, c, k]."""
    tokens = keys = k[..., None, :]
    halves = []
    for total in totals[:-1]:
        (first, second), (_, total_2) = _halves(keys), _halves(total)
        halves.append(first)
        keys = _join(_times(total_2, first), second)
    return tokens, halves, keys[:, 0]


def _scores_of_blocks(dot, reading, writing):
    """Of tokens with themselves [z, c, 1, 1], and of halves with halves for blocks of 2, 4, ... tokens."""
    (own, seconds, _), (tokens, firsts, _) = reading, writing
    own = jnp.zeros_like(tokens[..., :1]) if own is None else _scores(dot, own, tokens)
    return own, [_scores(dot, second, first) for second, first in zip(seconds, firsts, strict=True)]


def _in_four(dot):
    """The same products, summed in four parts: of keys alike, a long sum's rounding is what limits a delta rule's digits."""

    def summed(spec, x, y):
        cuts = [i * x.shape[-1] // 4 for i in (1, 2, 3)]
        a, b, c, d = (dot(spec, *both) for both in zip(jnp.split(x, cuts, axis=-1), jnp.split(y, cuts, axis=-1), strict=True))
        return (a + b) + (c + d)

    return summed


def inverse(m):
    """(I - M)^{-1} [z, c, c] of a strictly lower M, with one step of Newton's iteration to make good the rounding."""
    own, scores = _blocks(m)
    whole = jnp.ones_like(own)
    for score in scores:
        first, second = _halves(whole)
        whole = _lower(first, second, _matmul(_matmul(second, score), first))
    whole = whole[:, 0]
    return whole + _matmul(whole, jnp.eye(m.shape[-1], dtype=m.dtype)[None] - whole + _matmul(m, whole))


def _matmul(x, y):
    """x y of square matrices; tiny ones as sums: a product of 4 x 4 costs XLA on CPUs a call of a library, each."""
    size = x.shape[-1]
    if size > 4:
        return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)
    return sum(x[..., :, i : i + 1] * y[..., i : i + 1, :] for i in range(size))


@jax.custom_vjp
def _totals(g):
    """From log decays [z, c, w]: what blocks of 1, 2, 4, ..., c tokens keep, each [z, blocks, 1, w]."""
    totals = [jnp.exp(g)[:, :, None]]
    while totals[-1].shape[1] > 1:
        first, second = _halves(totals[-1])
        totals.append(first * second)
    return totals


def _totals_forward(g):
    totals = _totals(g)
    return totals, totals


def _totals_backward(totals, d):
    """Of a product of exponentials, to each exponent: the product times its gradient. JAX's own nests a `concatenate` per level.
    Held together, or XLA on CPUs does all of it once more where it is stored."""
    z, c, _, width = totals[0].shape
    each = (jnp.broadcast_to(x * dx, (z, x.shape[1], c // x.shape[1], width)) for x, dx in zip(totals, d, strict=True))
    return (lax.optimization_barrier(sum(x.reshape(z, c, width) for x in each)),)


_totals.defvjp(_totals_forward, _totals_backward)


def _blocks(whole):
    """What `_triangle` takes, from all scores [z, c, c]: of tokens with themselves [z, c, 1, 1], and of halves with halves."""
    blocks, scores = whole[:, None], []
    while (rows := blocks.shape[-1] // 2) > 0:
        scores.append(blocks[..., rows:, :rows])
        pairs = jnp.stack([blocks[..., :rows, :rows], blocks[..., rows:, rows:]], axis=2)
        blocks = pairs.reshape(len(whole), -1, rows, rows)
    return blocks, scores[::-1]


def _triangle(own, scores):
    """All scores in one matrix [z, c, c]."""
    for score in scores:
        own = _lower(*_halves(own), score)
    return own[:, 0]


def _lower(upper_left, lower_right, lower_left):
    """Blocks of a lower triangle from those of its halves."""
    upper = jnp.concatenate([upper_left, jnp.zeros_like(upper_left)], axis=-1)
    return _join(upper, jnp.concatenate([lower_left, lower_right], axis=-1))


def _fading(dot, scores, v, totals, exclusive):
    """`output` and `values` of a chunk whose values decay. Outputs go from blocks to tokens: each half sees what its block sees at
    its start, faded to the half's own, and the second half the first besides."""
    own, scores = _blocks(scores)
    tokens, firsts, values = _writing(v, totals)

    def output(seen, _):
        seen = seen[:, None]
        for score, first, total in zip(*map(reversed, (scores, firsts, totals[:-1])), strict=True):
            seen_1, seen_2 = jnp.split(seen, 2, axis=-2)
            seen_2 = _times(_halves(total)[0], seen_2) + _weigh(dot, score, first)
            seen = _join(seen_1, seen_2).reshape(first.shape[0], -1, *first.shape[2:])
        return (seen if exclusive else totals[0] * seen + _weigh(dot, own, tokens))[:, :, 0]

    return output, values


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
    if axis == -2 and size <= 16:  # one pass over few rows; held together, or each reader adds them up again
        return (lax.optimization_barrier(sum(d[..., i : i + 1, :] for i in range(size))),)
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
