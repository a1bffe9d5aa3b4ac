"""Attention with time cut over devices: queries stay, keys and values go round (Liu et al. 2023, arXiv:2310.01889).

Every device runs `blockwise` over the keys it holds, hands them on to the next, and merges what it gets by the denominators of the
partial softmaxes. In the backward pass the gradients of keys and values travel with them and are home after a whole round. Keys
that lie later, and with a window those too far back, cost no work: the bounds of `blockwise` are empty there.
Cost: as `blockwise`, on the last device t / pieces queries over all keys; 2 x pieces messages of one piece's keys and values
(backward 4 x), and memory for one piece's.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.attention import blockwise
from seqzoo.kernels.attention.pairs import ABSENT_KEY, ABSENT_QUERY, Settings, Tokens
from seqzoo.kernels.common.implementations import state_dtype
from seqzoo.kernels.common.vma import match_vma, zeros_like_vma


class Round(NamedTuple):
    """Settings and block sizes of a call, static when it is traced."""

    settings: Settings
    axis: str
    steps: int  # pieces that a query may see, its own included
    rows: int
    columns: int
    cached: int  # keys per block of the cache


def attend(
    settings: Settings,
    q: Array,
    pieces: list[tuple[Array, Array, Tokens]],
    queries: Tokens,
    words: Array | None,
    axis: str,
    steps: int,
) -> Array:
    """`blockwise.attend` for one piece of time: the last of `pieces` is this device's; one before it is a cache, equal on all."""
    b, t, h, _ = q.shape
    *cache, own = pieces
    rows = columns = blockwise.block_length(t, b * h)
    cached = blockwise.block_length(cache[0][0].shape[1], b * h) if cache else 0
    plan = Round(settings, axis, steps, rows, columns, cached)
    blocked = lambda piece, length: (
        *(blockwise.pad(jnp.moveaxis(x, 1, 2), length, 2) for x in piece[:2]),
        blockwise.whole_blocks(piece[2], length, ABSENT_KEY),
    )
    queries = blockwise.whole_blocks(queries, rows, ABSENT_QUERY)
    words = None if words is None else blockwise.pad(words, rows, 2)
    arguments = (
        blockwise.pad(jnp.moveaxis(q, 1, 2), rows, 2),
        blocked(own, columns),
        blocked(cache[0], cached) if cache else None,
        (queries, words),
    )
    o = cast(Array, _attend(plan, *match_vma(arguments, over=(axis,))))
    return jnp.moveaxis(o[:, :, :t], 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Round, q: Array, own: tuple, cache: tuple | None, side: tuple) -> Array:
    """o [b, h, t, v]; own and cache are (k, v, tokens), side (queries, words)."""
    return _forward(plan, q, own, cache, side)[0]


def _forward(plan, q, own, cache, side):
    dtype = state_dtype(q)
    o = zeros_like_vma(q, (*q.shape[:3], own[1].shape[3]), dtype)
    sums = zeros_like_vma(q, (*q.shape[:3], 1), dtype) - jnp.inf if plan.settings.scores == "softmax" else None
    so_far = (o, sums)
    if cache is not None:
        so_far = blockwise.forward(*_cells(plan, q, cache, side, plan.cached), dtype)

    def step(_, carry):
        so_far, held = carry
        here = blockwise.forward(*_cells(plan, q, held, side, plan.columns), dtype)
        return _merged(so_far, here), _pass_on(plan, held)

    (o, sums), _ = lax.fori_loop(0, plan.steps, step, (so_far, own))
    return o.astype(q.dtype), sums


def _save(plan, q, own, cache, side):
    o, sums = _forward(plan, q, own, cache, side)
    return o, (q, own, cache, side, blockwise.row_statistics(o, sums))


def _backward(plan, saved, do):
    q, own, cache, side, statistics = saved
    dtype = state_dtype(q)
    back = lambda piece, columns: blockwise.backward(*_cells(plan, q, piece, side, columns), statistics, do)
    cast = lambda gradients, like: tuple(g.astype(x.dtype) for g, x in zip(gradients, like, strict=True))

    def step(_, carry):
        dq, dk, dv, held = carry
        dq_here, dk_here, dv_here = back(held, plan.columns)
        dk, dv, held = _pass_on(plan, (dk + dk_here, dv + dv_here, held))
        return dq + dq_here, dk, dv, held

    start = (*(zeros_like_vma(x, dtype=dtype) for x in (q, *own[:2])), own)
    dq, dk, dv, _ = lax.fori_loop(0, plan.steps, step, start)
    dk, dv = _pass_on(plan, (dk, dv), -plan.steps)  # home, if it was no whole round
    d_cache = None
    if cache is not None:
        dq_cache, *gradients = back(cache, plan.cached)
        dq, d_cache = dq + dq_cache, (*cast(gradients, cache[:2]), None)
    return match_vma((*cast((dq,), (q,)), (*cast((dk, dv), own[:2]), None), d_cache, None))


_attend.defvjp(_save, _backward)


def _cells(plan, q, piece, side, columns):
    """(plan, q, k, v, cells) of one piece's keys, for `blockwise`."""
    k, v, keys = piece
    queries, words = side
    ends = blockwise.bounds(plan.settings, queries, keys, plan.rows, columns, carried=k.shape[2])
    return blockwise.Plan(plan.settings, plan.rows, columns), q, k, v, blockwise.Cells(queries, keys, *ends, words)


def _merged(one: tuple[Array, Array | None], other: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
    """The attention over two sets of keys from that over each."""
    if one[1] is None or other[1] is None:
        return one[0] + other[0], None
    top = jnp.maximum(one[1], other[1])
    base = jnp.where(top == -jnp.inf, 0, top)
    weights = jnp.exp(one[1] - base), jnp.exp(other[1] - base)
    total = weights[0] + weights[1]
    o = (one[0] * weights[0] + other[0] * weights[1]) / jnp.where(total == 0, 1, total)
    return o, jnp.where(total == 0, -jnp.inf, base + jnp.log(jnp.where(total == 0, 1, total)))


def _pass_on(plan: Round, held: Any, by: int = 1) -> Any:
    count = lax.axis_size(plan.axis)
    if by % count == 0:
        return held
    return lax.ppermute(held, plan.axis, [(i, (i + by) % count) for i in range(count)])
