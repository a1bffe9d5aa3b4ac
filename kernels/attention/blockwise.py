"""Attention block by block, with its own backward pass: the matrix of scores never exists.

Forward: each block of queries runs over the blocks of keys that it can see and keeps a running maximum, sum and weighted sum
(Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Backward: weights are computed again from the
saved log-sum-exp, one pass for all three gradients. Sigmoid scores (Ramapuram et al. 2024, arXiv:2409.04431) need no row
statistics.
Cost: O(t s) time less what the bounds skip; memory O(t + s) plus a few [b, h, block, block].
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from seqzoo.kernels.attention.pairs import ABSENT_KEY, ABSENT_QUERY, Settings, Tokens, kept, visible
from seqzoo.kernels.common.implementations import state_dtype
from seqzoo.kernels.common.vma import match_vma, zeros_like_vma

SMALLEST, LARGEST = 32, 256  # block lengths; measured on CPU
CELLS = 2**20  # largest b h block block: 4 MiB of float32 scores; twice as many were 1.3 times slower on CPU


class Plan(NamedTuple):
    """Settings and block sizes of a call, static when it is traced."""

    settings: Settings
    rows: int  # queries per block
    columns: int  # keys per block


class Cells(NamedTuple):
    """The integers that say what happens where."""

    queries: Tokens
    keys: Tokens
    first: Array  # [blocks of queries] int32, the first block of keys to visit
    end: Array  # [blocks of queries] int32, one past the last
    words: Array | None  # [b, h, t, 2] uint32, see `dropout_words`


def attend(settings: Settings, q: Array, pieces: list[tuple[Array, Array, Tokens]], queries: Tokens, words: Array | None) -> Array:
    """o [b, t, h, v] in q's dtype: every query over the keys and values of all pieces (cache, chunk)."""
    b, t, h, _ = q.shape
    carried = sum(k.shape[1] for k, _, _ in pieces[:-1])
    rows, columns = (block_length(n, b * h) for n in (t, carried + t))
    k, v, document, index = (
        jnp.concatenate(leaves, axis=1) for leaves in zip(*((k, v, *tokens) for k, v, tokens in pieces), strict=True)
    )
    queries = whole_blocks(queries, rows, ABSENT_QUERY)
    keys = whole_blocks(Tokens(document, index), columns, ABSENT_KEY)
    words = None if words is None else pad(words, rows, 2)
    cells = Cells(queries, keys, *bounds(settings, queries, keys, rows, columns, carried), words)
    q, k, v = (pad(jnp.moveaxis(x, 1, 2), n, 2) for x, n in ((q, rows), (k, columns), (v, columns)))
    o = cast(Array, _attend(Plan(settings, rows, columns), *match_vma((q, k, v, cells))))
    return jnp.moveaxis(o[:, :, :t], 1, 2)


def block_length(tokens: int, rows: int) -> int:
    """The block length for that many tokens: a power of two, small for short sequences and for many rows (batch times heads)."""
    length = LARGEST
    while length > SMALLEST and (length * 4 > tokens or length * length * rows > CELLS):
        length //= 2
    return length


def bounds(settings: Settings, queries: Tokens, keys: Tokens, rows: int, columns: int, carried: int) -> tuple[Array, Array]:
    """The range of key blocks that holds everything each query block can see: (first, end), both [blocks of queries] int32.

    Per block only the extremes of documents and indices are compared, so a range may be too wide, never too narrow. The first
    `carried` keys come from a cache and are in no order; of the others no query sees those in later rows.
    """

    def extremes(tokens, length):
        cut = [x.reshape(x.shape[0], -1, length) for x in tokens]
        real = cut[0] >= 0
        largest = np.int32(np.iinfo(np.int32).max)
        low = [jnp.min(jnp.where(real, x, largest), axis=2) for x in cut]
        high = [jnp.max(jnp.where(real, x, -1), axis=2) for x in cut]
        return (*low, *high)

    doc_low, low, doc_high, high = (x[:, :, None] for x in extremes(queries, rows))
    key_doc_low, key_low, key_doc_high, key_high = (x[:, None, :] for x in extremes(keys, columns))
    seen = (key_doc_low <= doc_high) & (key_doc_high >= doc_low) & (key_low <= high)
    if settings.window is not None:
        seen &= low - key_high < settings.window
    n, m = seen.shape[1:]
    triangle = np.arange(m)[None] * columns - carried < np.arange(1, n + 1)[:, None] * rows
    seen = jnp.any(seen, axis=0) & triangle
    block = lax.broadcasted_iota(jnp.int32, (n, m), 1)
    end = jnp.max(jnp.where(seen, block + 1, 0), axis=1)
    return jnp.minimum(jnp.min(jnp.where(seen, block, m), axis=1), end), end


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q: Array, k: Array, v: Array, cells: Cells) -> Array:
    """o [b, h, t, v] from q [b, h, t, k], k [b, hk, s, k], v [b, hv, s, v], all of whole blocks."""
    return forward(plan, q, k, v, cells, q.dtype)[0]


def forward(plan: Plan, q: Array, k: Array, v: Array, cells: Cells, out_dtype: Any) -> tuple[Array, Array | None]:
    """(o [b, h, t, v], the logarithm of softmax's denominators [b, h, t, 1], -inf where a query sees no key; None for sigmoid)."""
    settings, dtype = plan.settings, state_dtype(q)
    softmax = settings.scores == "softmax"
    b, h, t, _ = q.shape

    def query_block(i, results):
        q_i, queries, words = _rows(plan, i, q, cells)
        column = zeros_like_vma(q_i, (b, h, plan.rows, 1), dtype)
        start = (column - jnp.inf, column) if softmax else None

        def key_block(j, carry):
            statistics, mixed = carry
            k_j, v_j, keys = _columns(plan, j, k, v, cells)
            scores = _scores(plan, q_i, k_j, queries, keys)
            if softmax:
                top, total = statistics
                new = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
                base = jnp.where(new == -jnp.inf, 0, new)
                weights, decay = jnp.exp(scores - base), jnp.exp(top - base)
                statistics = new, total * decay + jnp.sum(weights, axis=-1, keepdims=True)
                mixed = mixed * decay
            else:
                weights = jax.nn.sigmoid(scores)
            if words is not None:
                weights = weights * kept(settings, words, keys)
            return statistics, mixed + _over_keys(weights, v_j)

        mixed = zeros_like_vma(q_i, (b, h, plan.rows, v.shape[3]), dtype)
        statistics, mixed = lax.fori_loop(cells.first[i], cells.end[i], key_block, (start, mixed))
        if not softmax:
            return (_put(results[0], mixed, i), None)
        top, total = statistics
        empty = total == 0
        total = jnp.where(empty, 1, total)
        log_sum = jnp.where(empty, -jnp.inf, top + jnp.log(total))
        return _put(results[0], mixed / total, i), _put(results[1], log_sum, i)

    results = zeros_like_vma(q, (b, h, t, v.shape[3]), out_dtype), zeros_like_vma(q, (b, h, t, 1), dtype) if softmax else None
    return lax.fori_loop(np.int32(0), np.int32(t // plan.rows), query_block, results)


def _save(plan, q, k, v, cells):
    o, log_sum = forward(plan, q, k, v, cells, q.dtype)
    return o, (q, k, v, cells, row_statistics(o, log_sum))


def row_statistics(o: Array, log_sum: Array | None) -> tuple[Array, Array] | None:
    """Residuals of softmax's rows: the outputs and finite logarithms of the denominators."""
    return None if log_sum is None else (o, jnp.where(log_sum == -jnp.inf, 0, log_sum))


def _backward(plan, saved, do):
    q, k, v, cells, statistics = saved
    gradients = backward(plan, q, k, v, cells, statistics, do)
    return *(x.astype(like.dtype) for x, like in zip(gradients, (q, k, v), strict=True)), None


def backward(plan: Plan, q: Array, k: Array, v: Array, cells: Cells, statistics: Any, do: Array) -> tuple[Array, Array, Array]:
    """(dq, dk, dv) in the state's dtype, from the gradient of all of o, of which these keys may be a part."""
    settings, dtype, t = plan.settings, state_dtype(q), q.shape[2]
    log_sum = row_term = None
    if statistics is not None:
        o, log_sum = statistics
        # sum_j w_ij dw_ij, which softmax takes off every dw_ij, is do_i . o_i.
        row_term = jnp.sum(do.astype(dtype) * o, axis=-1, keepdims=True)

    def query_block(i, gradients):
        dq, dk, dv = gradients
        q_i, queries, words = _rows(plan, i, q, cells)
        do_i = _cut(do, i, plan.rows)
        log_sum_i = row_term_i = None
        if log_sum is not None and row_term is not None:
            log_sum_i, row_term_i = _cut(log_sum, i, plan.rows), _cut(row_term, i, plan.rows)

        def key_block(j, carry):
            dq_i, dk, dv = carry
            k_j, v_j, keys = _columns(plan, j, k, v, cells)
            scores = _scores(plan, q_i, k_j, queries, keys)
            dw = _over_width(do_i, v_j, dtype)
            w = jax.nn.sigmoid(scores) if log_sum_i is None else jnp.exp(scores - log_sum_i)
            mixed_w = w
            if words is not None:
                factor = kept(settings, words, keys)
                mixed_w, dw = w * factor, dw * factor
            ds = w * (1 - w) * dw if row_term_i is None else w * (dw - row_term_i)
            # 0 * inf: a huge value in an unseen document must not reach this one.
            ds = jnp.where(scores == -jnp.inf, 0, ds)
            dv = _add(dv, _over_queries(mixed_w, do_i, v_j), j)
            dk = _add(dk, _over_queries(ds, q_i, k_j), j)
            return dq_i + _over_keys(ds, k_j), dk, dv

        start = zeros_like_vma(q_i, dtype=dtype)
        dq_i, dk, dv = lax.fori_loop(cells.first[i], cells.end[i], key_block, (start, dk, dv))
        return _put(dq, dq_i * settings.scale, i), dk, dv

    start = tuple(zeros_like_vma(x, dtype=dtype) for x in (q, k, v))
    dq, dk, dv = lax.fori_loop(np.int32(0), np.int32(t // plan.rows), query_block, start)
    return dq, dk * settings.scale, dv


_attend.defvjp(_save, _backward)


def _scores(plan: Plan, q_i: Array, k_j: Array, queries: Tokens, keys: Tokens) -> Array:
    """[b, h, rows, columns] in the state's dtype, bias included; -inf where unseen."""
    settings = plan.settings
    scores = _over_width(q_i, k_j, state_dtype(q_i)) * settings.scale
    if settings.scores == "sigmoid":
        scores = scores + settings.bias
    return jnp.where(visible(settings, queries, keys), scores, -jnp.inf)


# Products of blocks. h // hk query heads share a key head, so such a group is folded into the rows of one larger product.


def _fold(x: Array, heads: int) -> Array:
    b, h, n, d = x.shape
    return x.reshape(b, heads, h // heads * n, d)


def _over_width(x: Array, y: Array, dtype) -> Array:
    """[b, h, rows, columns] from x [b, h, rows, d] and y [b, hk, columns, d]."""
    product = jnp.einsum("bird,bicd->birc", _fold(x, y.shape[1]), y, preferred_element_type=dtype)
    return product.reshape(*x.shape[:3], y.shape[2])


def _over_keys(w: Array, y: Array) -> Array:
    """[b, h, rows, d] from w [b, h, rows, columns] and y [b, hk, columns, d]."""
    product = jnp.einsum("birc,bicd->bird", _fold(w, y.shape[1]).astype(y.dtype), y, preferred_element_type=w.dtype)
    return product.reshape(*w.shape[:3], y.shape[3])


def _over_queries(w: Array, x: Array, like: Array) -> Array:
    """[b, hk, columns, d] from w [b, h, rows, columns] and x [b, h, rows, d], summed over the heads that share one of `like`."""
    w, x = _fold(w, like.shape[1]), _fold(x, like.shape[1])
    return jnp.einsum("birc,bird->bicd", w.astype(x.dtype), x, preferred_element_type=w.dtype)


# Blocks of arrays.


def whole_blocks(tokens: Tokens, length: int, absent: int) -> Tokens:
    """Filled up with tokens that nobody sees."""
    return Tokens(pad(tokens.document, length, 1, absent), pad(tokens.position, length, 1))


def pad(x: Array, multiple: int, axis: int, value: int = 0) -> Array:
    """x filled up along an axis to a multiple of a length."""
    widths = [(0, -x.shape[axis] % multiple if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _cut(x: Array, i: Array, length: int, axis: int = 2) -> Array:
    return lax.dynamic_slice_in_dim(x, i * length, length, axis)


def _put(x: Array, block: Array, i: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), i * block.shape[2], 2)


def _add(x: Array, block: Array, i: Array) -> Array:
    return _put(x, _cut(x, i, block.shape[2]) + block, i)


def _rows(plan: Plan, i: Array, q: Array, cells: Cells):
    tokens = Tokens(*(_cut(x, i, plan.rows, 1) for x in cells.queries))
    return _cut(q, i, plan.rows), tokens, None if cells.words is None else _cut(cells.words, i, plan.rows)


def _columns(plan: Plan, j: Array, k: Array, v: Array, cells: Cells):
    tokens = Tokens(*(_cut(x, j, plan.columns, 1) for x in cells.keys))
    return _cut(k, j, plan.columns), _cut(v, j, plan.columns), tokens
