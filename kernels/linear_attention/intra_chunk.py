r"""Intra-chunk part of the chunkwise form: scores between the tokens of a chunk, and the chunk's update of the state.

A chunk of c tokens, S the state before it, S' the state after it, and D_ij = exp(g_{j+1} + ... + g_i) the decay between two tokens:

    S -->|  1    2   ...   j   ...   i   ...   c  |--> S'
         |<------ decay_from_start_i --->|        |        D_i0
         |                 |<---- D_ij ->|        |
         |                 |<---- decay_to_end_j -->       D_cj
         |<------------- chunk_decay ------------>|        D_c0

    o_i = (D_i0 q_i)^T S  +  sum_{j <= i} (q_i^T D_ij k_j) v_j        S' = D_c0 S  +  sum_j (D_cj k_j) v_j^T
           decayed query          intra-chunk score                                       decayed key

All decays are at most 1 and are formed as products, never as a quotient or as a difference of running sums of g: such a difference
has no digits left after a strong reset, and is NaN after an infinite one. With one decay per head D_ij is a number, and the scores
are q k^T times a mask. With one per channel they are found level by level in the block tree of the chunk (`block_tree.py`), which
is the secondary chunking of Yang et al., 2023, arXiv:2312.06635, with blocks that double. The level at which a score is found:

         j  1 2 3 4 5 6 7 8
    i  1    0
       2    1 0                     A block at level l scores the queries of its second half with the keys of its first half:
       3    2 2 0
       4    2 2 1 0                 D_ij = (decay from the start of the second half to i) * (decay from j to the end of the first),
       5    3 3 3 3 0
       6    3 3 3 3 1 0             so decayed queries times decayed keys in one matrix product. Joining two blocks, the queries
       7    3 3 3 3 2 2 0           of the second are decayed to the start of the first, and the keys of the first to the end of
       8    3 3 3 3 2 2 1 0         the second.

A low-rank term writes b_j u_j^T too, with u_j = a_j^T S_{j-1}. u_i contains the u_j before it, so all of a chunk are the solution
of a triangular system, M_ij = a_i^T D_{i-1,j} b_j for j < i:

    u = (I - M)^{-1} (local_values + decayed a S)

Without b, k stands for it and u has v in it (the WY representation of delta rules, Yang et al., 2024, arXiv:2406.06484).

Shapes: q, k, a, b [z, c, k]; v [z, c, r v]; c tokens, a power of two; z counts chunks, batch rows and groups of r heads, as one
axis: the sums of a gradient over seven axes crash jaxlib 0.10.2 on CPUs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..common import xla_cpu
from .block_tree import (
    block_decays,
    decay_mask,
    halves,
    join,
    join_triangle,
    split_triangle,
    times,
)
from .transition import Transition


class LowRank(NamedTuple):
    """Low-rank term of a chunk: u = (I - scores)^{-1} (local_values + queries S), written as keys^T u."""

    scores: Array  # M [z, c, c]
    queries: Array  # a, decayed from the start of the chunk [z, c, k]
    local_values: Array  # [z, c, v]
    keys: Array  # b, decayed to the end of the chunk [z, c, k]


class IntraChunk(NamedTuple):
    """Chunks, as functions of the state before them: o = output(queries S, u), S' = decay * S + keys^T values (+ low rank)."""

    output: Callable[[Array, Array | None], Array]  # o [z, c, r v]
    queries: Array  # decayed from the start of the chunk [z, c, k]
    write: tuple[Array, Array] | None  # keys [z, c, k] and values [z, c, r v], decayed to the end; None: u is all that is written
    decay: Array | None  # chunk_decay [z, 1 or k, 1 or r v]; None: 1
    low_rank: LowRank | None = None


class Borders(NamedTuple):
    """Documents inside a chunk. Products with a decay of 0 do not separate them where numbers overflow: 0 inf is NaN."""

    before: Array  # [z, c, 1] bool: the tokens up to which no document starts, which alone read the state before the chunk
    after: Array  # [z, c, 1] bool: the tokens after which no document starts, which alone write to the state after it
    same: Array  # [z, c, c] bool: pairs of tokens of one document


def find_borders(transition: Transition) -> Borders:
    """The borders of documents, at the tokens that forget everything."""
    decay = transition.key_decay if transition.key_decay is not None else transition.value_decay
    started = jnp.cumsum(jnp.all(decay == -jnp.inf, axis=-1), axis=1, dtype=jnp.int32)
    return Borders((started == 0)[..., None], (started == started[:, -1:])[..., None], started[:, :, None] == started[:, None])


def select(mask: Array | None, x: Array) -> Array:
    """x, with zeros and without a gradient where the mask is False."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def attend(einsum, scores: Array, v: Array, borders: Borders | None) -> Array:
    """scores v, [..., c, v]."""
    return einsum(SCORES_TIMES_VALUES, scores, v) if borders is None else _attend_apart(einsum, scores, v)


SCORES_TIMES_VALUES = "...ij,...jv->...iv"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_apart(einsum, scores, v):
    return einsum(SCORES_TIMES_VALUES, scores, v)


def _attend_apart_forward(einsum, scores, v):
    return _attend_apart(einsum, scores, v), (scores, v)


def _attend_apart_backward(einsum, saved, d):
    """The gradient of v sums over the outputs of all documents, with zeros for those of others: only finite gradients go there.

    One that is not finite reaches its own document by way of the scores.
    """
    _, pull = jax.vjp(functools.partial(einsum, SCORES_TIMES_VALUES), *saved)
    return pull(d)[0], pull(select(jnp.isfinite(d), d))[1]


_attend_apart.defvjp(_attend_apart_forward, _attend_apart_backward)


def head_decay(einsum, q, k, v, transition: Transition, read_before_write: bool, borders: Borders | None) -> IntraChunk:
    """Chunks with at most one decay per head, key_decay [z, c, r] or None: scores q k^T, shared by the r heads, times a mask."""
    scores, g = einsum("zik,zjk->zij", q, k), transition.key_decay
    if g is None:
        scores = scores * causal_mask(q, read_before_write)
        return IntraChunk(lambda read, _: read + einsum("zij,zjv->ziv", scores, v), q, (k, v), None)
    z, c, r = g.shape
    scores = scores if borders is None else select(borders.same, scores)
    split_heads = lambda x: jnp.moveaxis(x.reshape(z, c, r, -1), 2, 1).reshape(z * r, c, -1)
    merge_heads = lambda x: jnp.moveaxis(x.reshape(z, r, x.shape[1], -1), 1, 2).reshape(z, x.shape[1], -1)
    mask, decay_from_start, decay_to_end, chunk_decay = decay_mask(jnp.exp(split_heads(g)), read_before_write)
    scores = scores[:, None] * mask.reshape(z, r, c, c)
    after = None
    if borders is not None:
        scores, after = select(borders.same[:, None], scores), jnp.repeat(borders.after, r, axis=0)
    scores, v = scores.reshape(z * r, c, c), split_heads(v)
    decayed = lambda x: merge_heads(jnp.broadcast_to(x, (*x.shape[:2], v.shape[-1])))
    values = merge_heads(select(after, times(decay_to_end, select(after, v))))
    output = lambda read, _: decayed(decay_from_start) * read + merge_heads(attend(einsum, scores, v, borders))
    return IntraChunk(output, q, (k, values), decayed(chunk_decay))


def channel_decay(einsum, q, k, v, transition: Transition, read_before_write: bool, borders: Borders | None) -> IntraChunk:
    """Chunks with decays per channel of the keys [z, c, k], of the values [z, c, v], or of both; v is [z, c, v]."""
    queries, keys = (einsum, q, read_before_write), k
    ((scores,),), (decayed_q,), (decayed_k,), decay = intra_chunk_scores([queries], [keys], transition.key_decay)
    if borders is not None:
        scores, decayed_k = select(borders.same, scores), select(borders.after, decayed_k)
    if transition.value_decay is None:
        return IntraChunk(lambda read, _: read + attend(einsum, scores, v, borders), decayed_q, (decayed_k, v), decay)
    value_decays = block_decays(transition.value_decay)
    output, decayed_v = decayed_outputs(einsum, scores, v, value_decays, read_before_write, borders)
    decayed_v = decayed_v if borders is None else select(borders.after, decayed_v)
    return IntraChunk(output, decayed_q, (decayed_k, decayed_v), times(decay, value_decays[-1][:, 0]))


def low_rank(einsum, q, k, v, transition: Transition, read_before_write: bool, borders: Borders | None) -> IntraChunk:
    """Chunks with a and b [z, c, k] (b None: k) and key_decay None, [z, c, 1] or [z, c, k]; v is [z, c, v].

    No borders: the system of a chunk is solved for all of its documents at once, so all its numbers must stay finite.
    """
    assert borders is None
    keys = [k] if transition.b is None else [transition.b, k]
    queries = [(einsum, q, read_before_write), (sum_in_parts(einsum) if q.shape[1] > 32 else einsum, transition.a, True)]
    scores, (decayed_q, decayed_a), decayed_keys, decay = intra_chunk_scores(queries, keys, transition.key_decay)
    (q_b, *q_k), (a_b, *a_k) = scores
    local_values = v if transition.b is None else einsum("zij,zjv->ziv", a_k[0], v)
    term = LowRank(a_b, decayed_a, local_values, decayed_keys[0])
    of_u = lambda read, u: read + einsum("zij,zjv->ziv", q_b, u)
    if transition.b is None:
        return IntraChunk(of_u, decayed_q, None, decay, term)
    of_v = einsum("zij,zjv->ziv", q_k[0], v)
    return IntraChunk(lambda read, u: of_v + of_u(read, u), decayed_q, (decayed_keys[1], v), decay, term)


def intra_chunk_scores(queries, keys, g):
    """Scores of every query with every key, and both decayed to the borders of the chunk.

    Args:
      queries: list of (einsum, q [z, c, k], read_before_write).
      keys: list of [z, c, k].
      g: log decays, None, [z, c, 1] or [z, c, k].
    Returns:
      scores [z, c, c], by query and key; queries decayed from the start of the chunk; keys decayed to its end; chunk_decay.
    """
    if g is not None and g.shape[-1] > 1:
        decays = block_decays(g)
        query_trees = [(einsum, decayed_queries(q, decays, before)) for einsum, q, before in queries]
        key_trees = [decayed_keys(k, decays) for k in keys]
        scores = [[tree_scores(einsum, q, k) for k in key_trees] for einsum, q in query_trees]
        return scores, [q[-1] for _, q in query_trees], [k[-1] for k in key_trees], jnp.swapaxes(decays[-1][:, 0], -1, -2)
    if g is None:
        masks, chunk_decay = [causal_mask(q, before) for _, q, before in queries], None
        decayed_q, decayed_k = [q for _, q, _ in queries], keys
    else:
        mask, decay_from_start, decay_to_end, chunk_decay = decay_mask(jnp.exp(g), read_before_write=False)
        shift = lambda x, first: jnp.concatenate([jnp.full_like(x[:, :1], first), x[:, :-1]], axis=1)  # to the token before
        masks = [shift(mask, 0) if before else mask for _, _, before in queries]
        decayed_q = [times(shift(decay_from_start, 1) if before else decay_from_start, q) for _, q, before in queries]
        decayed_k = [times(decay_to_end, k) for k in keys]
    scores = [[einsum("zik,zjk->zij", q, k) * mask for k in keys] for (einsum, q, _), mask in zip(queries, masks, strict=True)]
    return scores, decayed_q, decayed_k, chunk_decay


def sum_in_parts(einsum):
    """`einsum` with its sum over the last axis of both arguments taken in four parts.

    The rounding of one long sum in M is what limits the digits of a delta rule whose keys resemble each other. At cosine 0.8,
    beta 2 and 4096 tokens the largest error is 7e-6 in chunks of 64, in one sum 1.3e-5; in chunks of 128 1.1e-5 and 2.0e-5
    (`tests/kernels/test_delta_rule.py`; jax 0.11.2 on a CPU).
    """

    def in_parts(spec, x, y):
        cuts = [i * x.shape[-1] // 4 for i in (1, 2, 3)]
        a, b, c, d = (einsum(spec, *part) for part in zip(jnp.split(x, cuts, axis=-1), jnp.split(y, cuts, axis=-1), strict=True))
        return (a + b) + (c + d)

    return in_parts


def causal_mask(q, read_before_write):
    """Ones for j <= i, or for j < i."""
    return np.tri(q.shape[1], k=-1 if read_before_write else 0, dtype=q.dtype)[None]


def decayed_queries(q, decays, read_before_write):
    """Queries of the block tree: (for the scores with their own token, second halves of the blocks of 2, 4, ... tokens, each
    decayed from the start of the half, all decayed from the start of the chunk [z, c, k]). None: no score with the own token."""
    tokens = blocks = q[..., None, :]  # [z, blocks, rows, k], of single tokens
    blocks, second_halves = blocks if read_before_write else times(decays[0], blocks), []
    for decay in decays[:-1]:
        (first, second), (decay_of_first, _) = halves(blocks), halves(decay)
        second_halves.append(second)
        blocks = join(first, times(decay_of_first, second))
    return None if read_before_write else tokens, second_halves, blocks[:, 0]


def decayed_keys(k, decays):
    """Keys of the block tree: (single tokens, first halves of the blocks of 2, 4, ... tokens, each decayed to the end of the half,
    all decayed to the end of the chunk [z, c, k])."""
    tokens = blocks = k[..., None, :]
    first_halves = []
    for decay in decays[:-1]:
        (first, second), (_, decay_of_second) = halves(blocks), halves(decay)
        first_halves.append(first)
        blocks = join(times(decay_of_second, first), second)
    return tokens, first_halves, blocks[:, 0]


def tree_scores(einsum, queries, keys):
    """Scores [z, c, c] from `decayed_queries` and `decayed_keys`."""
    (own, second_halves, _), (tokens, first_halves, _) = queries, keys
    diagonal = jnp.zeros_like(tokens[..., :1]) if own is None else block_scores(einsum, own, tokens)
    squares = [block_scores(einsum, second, first) for second, first in zip(second_halves, first_halves, strict=True)]
    return join_triangle(diagonal, squares)


def decayed_outputs(einsum, scores, v, decays, read_before_write, borders):
    """`IntraChunk.output` and the decayed values of chunks whose values decay, from the scores [z, c, c].

    Outputs go from the root of the block tree to the tokens: the read of a block's second half is decayed by the first half, and
    gains the scores with the first half times its decayed values.
    """
    diagonal, squares = split_triangle(scores)
    tokens, first_halves, values = decayed_keys(v, decays)

    def output(read, _):
        read = read[:, None]
        for square, first, decay in zip(*map(reversed, (squares, first_halves, decays[:-1])), strict=True):
            read_1, read_2 = jnp.split(read, 2, axis=-2)
            read_2 = times(halves(decay)[0], read_2) + block_outputs(einsum, square, first, borders)
            read = join(read_1, read_2).reshape(first.shape[0], -1, *first.shape[2:])
        return (read if read_before_write else decays[0] * read + block_outputs(einsum, diagonal, tokens, borders))[:, :, 0]

    return output, values


def block_scores(einsum, q, k):
    """q k^T within blocks [z, blocks, rows, width]."""
    return einsum("zBik,zBjk->zBij", q, k) if q.shape[-2] > 1 else xla_cpu.sum_keepdims(q * k, axis=-1)


def block_outputs(einsum, scores, v, borders):
    """scores v within blocks."""
    return attend(einsum, scores, v, borders) if v.shape[-2] > 1 else times(scores, v)
