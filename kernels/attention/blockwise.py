"""Attention block by block, with its own backward pass: the matrix of scores never exists.

                 key blocks
               0   1   2   3
    query   0  x                  x: computed, one block of scores at a time; the other blocks hold no visible key
    blocks  1  x   x              (causality here; windows and documents skip more, see `block_ranges`)
            2  x   x   x
            3  x   x   x   x

Forward: each block of queries runs over the blocks of keys that it can see, with a running maximum, denominator and weighted sum
(Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Backward: weights are computed again from the
saved log-sum-exp, one pass for all three gradients. Sigmoid scores (Ramapuram et al. 2024, arXiv:2409.04431) need neither maximum
nor denominator.
Cost: O(t s) time less the skipped blocks; memory O(t + s) plus a few [b, h, block, block].
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from seqzoo.kernels.attention.pairs import PADDING_KEY, PADDING_QUERY, Settings, Tokens, dropout_mask, visible
from seqzoo.kernels.common.first_order import first_order
from seqzoo.kernels.common.implementations import state_dtype
from seqzoo.kernels.common.vma import match_vma, zeros_like_vma

SMALLEST, LARGEST = 32, 256  # block sizes; measured on CPU
MAX_BLOCK_SCORES = 2**20  # largest b h block block: 4 MiB of float32 scores; twice as many were 1.3 times slower on CPU


class BlockSizes(NamedTuple):
    """Numbers of tokens per block, static when it is traced."""

    query: int
    key: int


class MaskInfo(NamedTuple):
    """Integers that decide which scores exist, and the random bits of dropout."""

    queries: Tokens
    keys: Tokens
    first: Array  # [query blocks] int32, the first key block that each query block can see
    end: Array  # [query blocks] int32, one past the last
    random_bits: Array | None  # [b, h, t, 2] uint32, see `draw_random_bits`


def attend(
    settings: Settings, q: Array, kv_sets: list[tuple[Array, Array, Tokens]], queries: Tokens, random_bits: Array | None
) -> Array:
    """Computes o [b, t, h, v] in q's dtype: every query over the keys and values of all sets, the cache's and the call's own."""
    b, t, h, _ = q.shape
    cached = sum(k.shape[1] for k, _, _ in kv_sets[:-1])
    sizes = BlockSizes(*(block_size(n, b * h) for n in (t, cached + t)))
    k, v, segment, position = (
        jnp.concatenate(leaves, axis=1) for leaves in zip(*((k, v, *tokens) for k, v, tokens in kv_sets), strict=True)
    )
    queries = pad_tokens(queries, sizes.query, PADDING_QUERY)
    keys = pad_tokens(Tokens(segment, position), sizes.key, PADDING_KEY)
    random_bits = None if random_bits is None else pad(random_bits, sizes.query, 2)
    info = MaskInfo(queries, keys, *block_ranges(settings, queries, keys, sizes, cached), random_bits)
    q, k, v = (pad(jnp.moveaxis(x, 1, 2), n, 2) for x, n in ((q, sizes.query), (k, sizes.key), (v, sizes.key)))
    o = cast(Array, _attend(settings, sizes, *match_vma((q, k, v, info))))
    return jnp.moveaxis(o[:, :, :t], 1, 2)


def block_size(tokens: int, heads: int) -> int:
    """Tokens per block, a power of two: small for short sequences and for many heads (over all rows of the batch)."""
    size = LARGEST
    while size > SMALLEST and (size * 4 > tokens or size * size * heads > MAX_BLOCK_SCORES):
        size //= 2
    return size


def block_ranges(settings: Settings, queries: Tokens, keys: Tokens, sizes: BlockSizes, cached: int) -> tuple[Array, Array]:
    """Ranges of key blocks that hold every key visible to a query block: (first, end), both [query blocks] int32.

    Per block only the extremes of segments and positions are compared, so a range may be too wide, never too narrow. The first
    `cached` keys come from a cache and are in no order; among the others no query sees later tokens of the row.
    """

    def extremes(tokens, size):
        blocks = [x.reshape(x.shape[0], -1, size) for x in tokens]
        real = blocks[0] >= 0
        largest = np.int32(np.iinfo(np.int32).max)
        low = [jnp.min(jnp.where(real, x, largest), axis=2) for x in blocks]
        high = [jnp.max(jnp.where(real, x, -1), axis=2) for x in blocks]
        return (*low, *high)

    segment_low, low, segment_high, high = (x[:, :, None] for x in extremes(queries, sizes.query))
    key_segment_low, key_low, key_segment_high, key_high = (x[:, None, :] for x in extremes(keys, sizes.key))
    seen = (key_segment_low <= segment_high) & (key_segment_high >= segment_low) & (key_low <= high)
    if settings.window is not None:
        seen &= low - key_high < settings.window
    n, m = seen.shape[1:]
    causal = np.arange(m)[None] * sizes.key - cached < np.arange(1, n + 1)[:, None] * sizes.query
    seen = jnp.any(seen, axis=0) & causal
    block = lax.broadcasted_iota(jnp.int32, (n, m), 1)
    end = jnp.max(jnp.where(seen, block + 1, 0), axis=1)
    return jnp.minimum(jnp.min(jnp.where(seen, block, m), axis=1), end), end


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(settings: Settings, sizes: BlockSizes, q: Array, k: Array, v: Array, info: MaskInfo) -> Array:
    """Computes o [b, h, t, v] from q [b, h, t, k], k [b, hk, s, k], v [b, hv, s, v], padded to whole blocks."""
    return forward(settings, sizes, q, k, v, info, q.dtype)[0]


def forward(
    settings: Settings, sizes: BlockSizes, q: Array, k: Array, v: Array, info: MaskInfo, out_dtype: Any
) -> tuple[Array, Array | None]:
    """Computes o [b, h, t, v] and the logarithm of softmax's denominators [b, h, t, 1].

    The logarithm is -inf for a query that sees no key; None for sigmoid scores.
    """
    dtype = state_dtype(q)
    softmax = settings.scores == "softmax"
    b, h, t, _ = q.shape

    def query_block(i, results):
        q_i, queries, random_bits = _get_queries(sizes, i, q, info)
        column = zeros_like_vma(q_i, (b, h, sizes.query, 1), dtype)
        start = (column - jnp.inf, column) if softmax else None

        def key_block(j, carry):
            statistics, o_i = carry
            k_j, v_j, keys = _get_keys(sizes, j, k, v, info)
            scores = _scores(settings, q_i, k_j, queries, keys)
            if softmax:
                running_max, denominator = statistics
                new = jnp.maximum(running_max, jnp.max(scores, axis=-1, keepdims=True))
                base = jnp.where(new == -jnp.inf, 0, new)
                weights, decay = jnp.exp(scores - base), jnp.exp(running_max - base)
                statistics = new, denominator * decay + jnp.sum(weights, axis=-1, keepdims=True)
                o_i = o_i * decay
            else:
                weights = jax.nn.sigmoid(scores)
            if random_bits is not None:
                weights = weights * dropout_mask(settings, random_bits, keys)
            return statistics, o_i + _weighted_sums(weights, v_j)

        o_i = zeros_like_vma(q_i, (b, h, sizes.query, v.shape[3]), dtype)
        statistics, o_i = lax.fori_loop(info.first[i], info.end[i], key_block, (start, o_i))
        if not softmax:
            return (_set_block(results[0], o_i, i), None)
        running_max, denominator = statistics
        empty = denominator == 0
        denominator = jnp.where(empty, 1, denominator)
        log_sum = jnp.where(empty, -jnp.inf, running_max + jnp.log(denominator))
        return _set_block(results[0], o_i / denominator, i), _set_block(results[1], log_sum, i)

    results = zeros_like_vma(q, (b, h, t, v.shape[3]), out_dtype), zeros_like_vma(q, (b, h, t, 1), dtype) if softmax else None
    return lax.fori_loop(np.int32(0), np.int32(t // sizes.query), query_block, results)


def _save(settings, sizes, q, k, v, info):
    o, log_sum = forward(settings, sizes, q, k, v, info, q.dtype)
    o, log_sum = first_order("attention", (o, log_sum))
    return o, (q, k, v, info, softmax_residuals(o, log_sum))


def softmax_residuals(o: Array, log_sum: Array | None) -> tuple[Array, Array] | None:
    """Residuals of softmax in addition to q, k and v: the outputs, and finite logarithms of the denominators."""
    return None if log_sum is None else (o, jnp.where(log_sum == -jnp.inf, 0, log_sum))


def _backward(settings, sizes, residuals, do):
    q, k, v, info, of_softmax = residuals
    gradients = first_order("attention", backward(settings, sizes, q, k, v, info, of_softmax, do))
    return *(x.astype(like.dtype) for x, like in zip(gradients, (q, k, v), strict=True)), None


def backward(
    settings: Settings, sizes: BlockSizes, q: Array, k: Array, v: Array, info: MaskInfo, of_softmax: Any, do: Array
) -> tuple[Array, Array, Array]:
    """Computes (dq, dk, dv) in the dtype of states, from the gradient of o. These keys may be a part of those that made o."""
    dtype, t = state_dtype(q), q.shape[2]
    log_sum = delta = None
    if of_softmax is not None:
        o, log_sum = of_softmax
        # sum_j w_ij dw_ij, which softmax subtracts from every dw_ij, is do_i . o_i.
        delta = jnp.sum(do.astype(dtype) * o, axis=-1, keepdims=True)

    def query_block(i, gradients):
        dq, dk, dv = gradients
        q_i, queries, random_bits = _get_queries(sizes, i, q, info)
        do_i = _get_block(do, i, sizes.query)
        log_sum_i = delta_i = None
        if log_sum is not None and delta is not None:
            log_sum_i, delta_i = _get_block(log_sum, i, sizes.query), _get_block(delta, i, sizes.query)

        def key_block(j, carry):
            dq_i, dk, dv = carry
            k_j, v_j, keys = _get_keys(sizes, j, k, v, info)
            scores = _scores(settings, q_i, k_j, queries, keys)
            dw = _dot_products(do_i, v_j, dtype)
            hidden = scores == -jnp.inf  # what has overflowed in another document must not reach this one: 0 inf is NaN
            w = jnp.where(hidden, 0, jax.nn.sigmoid(scores) if log_sum_i is None else jnp.exp(scores - log_sum_i))
            dropped_w = w
            if random_bits is not None:
                mask = dropout_mask(settings, random_bits, keys)
                dropped_w, dw = w * mask, dw * mask
            ds = w * (1 - w) * dw if delta_i is None else w * (dw - delta_i)
            ds = jnp.where(hidden, 0, ds)
            dv = _add_block(dv, _sum_over_queries(dropped_w, do_i, v_j), j)
            dk = _add_block(dk, _sum_over_queries(ds, q_i, k_j), j)
            return dq_i + _weighted_sums(ds, k_j), dk, dv

        start = zeros_like_vma(q_i, dtype=dtype)
        dq_i, dk, dv = lax.fori_loop(info.first[i], info.end[i], key_block, (start, dk, dv))
        return _set_block(dq, dq_i * settings.scale, i), dk, dv

    start = tuple(zeros_like_vma(x, dtype=dtype) for x in (q, k, v))
    dq, dk, dv = lax.fori_loop(np.int32(0), np.int32(t // sizes.query), query_block, start)
    return dq, dk * settings.scale, dv


_attend.defvjp(_save, _backward)


def _scores(settings: Settings, q_i: Array, k_j: Array, queries: Tokens, keys: Tokens) -> Array:
    """[b, h, query block, key block] in the dtype of states, bias included; -inf where not visible."""
    scores = _dot_products(q_i, k_j, state_dtype(q_i)) * settings.scale
    if settings.scores == "sigmoid":
        scores = scores + settings.bias
    return jnp.where(visible(settings, queries, keys), scores, -jnp.inf)


# Products of blocks. h // hk query heads share a key head: such a group is one product with as many times more queries.


def _group_heads(x: Array, heads: int) -> Array:
    b, h, n, d = x.shape
    return x.reshape(b, heads, h // heads * n, d)


def _dot_products(x: Array, y: Array, dtype) -> Array:
    """[b, h, queries, keys] from x [b, h, queries, d] and y [b, hk, keys, d]."""
    product = jnp.einsum("bird,bicd->birc", _group_heads(x, y.shape[1]), y, preferred_element_type=dtype)
    return product.reshape(*x.shape[:3], y.shape[2])


def _weighted_sums(w: Array, y: Array) -> Array:
    """[b, h, queries, d] from w [b, h, queries, keys] and y [b, hk, keys, d]."""
    product = jnp.einsum("birc,bicd->bird", _group_heads(w, y.shape[1]).astype(y.dtype), y, preferred_element_type=w.dtype)
    return product.reshape(*w.shape[:3], y.shape[3])


def _sum_over_queries(w: Array, x: Array, like: Array) -> Array:
    """[b, hk, keys, d] from w [b, h, queries, keys] and x [b, h, queries, d], summed over the heads that share one of `like`."""
    w, x = _group_heads(w, like.shape[1]), _group_heads(x, like.shape[1])
    return jnp.einsum("birc,bird->bicd", w.astype(x.dtype), x, preferred_element_type=w.dtype)


# Blocks of arrays.


def pad_tokens(tokens: Tokens, multiple: int, segment: int) -> Tokens:
    """Tokens padded to a multiple of a length with those of `segment`, PADDING_KEY or PADDING_QUERY."""
    return Tokens(pad(tokens.segment, multiple, 1, segment), pad(tokens.position, multiple, 1))


def pad(x: Array, multiple: int, axis: int, value: int = 0) -> Array:
    """x padded along an axis to a multiple of a length."""
    widths = [(0, -x.shape[axis] % multiple if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _get_block(x: Array, i: Array, size: int, axis: int = 2) -> Array:
    return lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _set_block(x: Array, block: Array, i: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), i * block.shape[2], 2)


def _add_block(x: Array, block: Array, i: Array) -> Array:
    return _set_block(x, _get_block(x, i, block.shape[2]) + block, i)


def _get_queries(sizes: BlockSizes, i: Array, q: Array, info: MaskInfo):
    tokens, q_i = Tokens(*(_get_block(x, i, sizes.query, 1) for x in info.queries)), _get_block(q, i, sizes.query)
    return q_i, tokens, None if info.random_bits is None else _get_block(info.random_bits, i, sizes.query)


def _get_keys(sizes: BlockSizes, j: Array, k: Array, v: Array, info: MaskInfo):
    tokens = Tokens(*(_get_block(x, j, sizes.key, 1) for x in info.keys))
    return _get_block(k, j, sizes.key), _get_block(v, j, sizes.key), tokens
