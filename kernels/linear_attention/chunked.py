r"""Chunks of tokens by matrix products: best on accelerators, and on CPUs for wide states with at most one decay per head.

Inside a chunk of c tokens, with D_ij = g_{j+1} + ... + g_i (0 for i = j) and S the state before the chunk:

    o_i = scale (exp(g_1 + ... + g_i) q_i)^T S + scale \sum_{j <= i} (\sum_k q_ik k_jk exp(D_ijk)) v_j
    S'  = Diag(exp(g_1 + ... + g_c)) S + \sum_j (exp(D_cj) k_j) v_j^T

Every exponent is a sum of non-positive terms, formed as such by masked sums: subtracting running sums, the usual way, loses digits
after a strong reset and makes NaN after an infinite one. With a decay per channel, exp(D_ijk) is only formed for pairs inside
sub-blocks of 16 tokens; between sub-blocks it is the product of j's suffix, the whole sub-blocks between and i's prefix, which are
absorbed into k and q so that a matrix product does the sum over k ("secondary chunking", Yang et al., 2023, arXiv:2312.06635).
Backward: chunks in reverse, each differentiated by JAX from the state saved at its start. Shapes as in `grouping.py`, with time moved
behind the heads inside a chunk.
Cost per head and chunk: 2 c^2 (k + v) + 4 c k v multiply-adds; memory beyond the inputs t/c states per head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .grouping import merge, split

SUB_BLOCK = 16  # pairs inside it cost k exponentials each; Yang et al. 2023 and fla use 16


def _masked_sum(mask, g):
    """sum_l mask[..., l] g[..., l, x], over [*leading, l, x] -> [*leading, *mask.shape[:-1], x], safe for -inf (where a product is not)."""
    leading = g.ndim - 2
    g = g.reshape(*g.shape[:leading], *(1,) * (mask.ndim - 1), *g.shape[leading:])
    mask = mask.reshape((1,) * leading + mask.shape + (1,))
    return jnp.sum(jnp.where(mask, g, jnp.zeros((1,) * g.ndim, g.dtype)), axis=-2)


def _prefix(g):
    """[..., c, x]: the sum up to and including each row."""
    i = np.arange(g.shape[-2])
    return _masked_sum(i[None, :] <= i[:, None], g)


def _suffix(g):
    """[..., c, x]: the sum after each row."""
    i = np.arange(g.shape[-2])
    return _masked_sum(i[None, :] > i[:, None], g)


def _pairs(g, *, strict=False):
    """[..., c, c, x]: the sum over j < l <= i (`strict`: j < l < i); -inf above the diagonal (`strict`: and on it)."""
    i, j, l = np.ogrid[: g.shape[-2], : g.shape[-2], : g.shape[-2]]
    total = _masked_sum((j < l) & ((l < i) if strict else (l <= i)), g)
    causal = ((j < i) if strict else (j <= i)).reshape((1,) * (g.ndim - 2) + (*total.shape[-3:-1], 1))
    return jnp.where(causal, total, jnp.full((1,) * total.ndim, -jnp.inf, total.dtype))


def _no_decay(dot, q, k, v, s):
    causal = np.tril(np.ones((q.shape[2],) * 2, bool))[None, None]
    scores = jnp.where(causal, dot("bnik,bnjk->bnij", q, k), jnp.zeros((1,) * 4, q.dtype))
    o = dot("bnik,bnrkv->bnriv", q, s) + dot("bnij,bnrjv->bnriv", scores, v)
    return o, s + dot("bnjk,bnrjv->bnrkv", k, v)


def _head_decay(dot, q, k, v, g, s):
    g = g[..., None]
    scores = dot("bnik,bnjk->bnij", q, k)[:, :, None] * jnp.exp(_pairs(g)[..., 0])
    o = jnp.exp(_prefix(g)) * dot("bnik,bnrkv->bnriv", q, s) + dot("bnrij,bnrjv->bnriv", scores, v)
    written = dot("bnjk,bnrjv->bnrkv", k, jnp.exp(_suffix(g)) * v)
    return o, jnp.exp(jnp.sum(g, axis=-2, keepdims=True)) * s + written


def _channel_decay(dot, q, k, v, g, s):
    b, n, r, c, width = g.shape
    sub = c if c <= SUB_BLOCK else math.gcd(c, SUB_BLOCK)
    blocks = c // sub
    g = g.reshape(b, n, r, blocks, sub, width)
    q, k = (x.reshape(b, n, 1, blocks, sub, width) for x in (q, k))
    v = v.reshape(b, n, r, blocks, sub, v.shape[-1])
    total, prefix, suffix = jnp.sum(g, axis=-2), _prefix(g), _suffix(g)
    inside = jnp.sum(q[..., :, None, :] * k[..., None, :, :] * jnp.exp(_pairs(g)), axis=-1)
    o = dot("bnrBij,bnrBjv->bnrBiv", inside, v)
    q = q * jnp.exp(prefix)
    if blocks > 1:
        reach = jnp.exp(_pairs(total, strict=True)[..., None, :] + suffix[..., None, :, :, :])  # from row j of block J to block I's start
        scores = dot("bnrIik,bnrIJjk->bnrIiJj", q, k[:, :, :, None] * reach)
        o = o + dot("bnrIiJj,bnrJjv->bnrIiv", scores, v)
    before, after = _prefix(total) if blocks > 1 else total, _suffix(total)
    before = jnp.concatenate([jnp.zeros_like(before[..., :1, :]), before[..., :-1, :]], axis=-2)
    o = o + dot("bnrIik,bnrkv->bnrIiv", q * jnp.exp(before)[..., None, :], s)
    written = dot("bnrJjk,bnrJjv->bnrkv", k * jnp.exp(suffix + after[..., None, :]), v)
    return o.reshape(b, n, r, c, -1), jnp.exp(jnp.sum(total, axis=-2))[..., None] * s + written


def _one_chunk(precision, scale, q, k, v, log_decay, s):
    """(o [b, c, h, v], the state after the chunk), both in the state's dtype."""
    groups = q.shape[2]

    def dot(spec, x, y):
        return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=s.dtype)

    q, k, v = (jnp.moveaxis(x.astype(s.dtype), 1, 2) for x in (q, k, v))
    v, s = split(v, groups), split(s, groups)
    if log_decay is None:
        o, s = _no_decay(dot, q, k, v, s)
    else:
        g = split(jnp.moveaxis(log_decay.astype(s.dtype), 1, 2), groups)
        o, s = (_head_decay if g.ndim == 4 else _channel_decay)(dot, q, k, v, g, s)
    return scale * jnp.moveaxis(merge(o), 2, 1), merge(s)


def _precision(*arrays):
    """Products of float32 must not be rounded to TF32 or bfloat16; those of narrower inputs may, their inputs were already."""
    return lax.Precision.HIGHEST if jnp.result_type(*arrays).itemsize >= 4 else lax.Precision.DEFAULT


def _pad(x, length):
    """x with zero rows up to `length`: a zero key writes nothing and a zero log decay keeps everything."""
    return None if x is None else jnp.pad(x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])


def _slices(arrays, j, chunk):
    return [None if x is None else lax.dynamic_slice_in_dim(x, j * chunk, chunk, axis=1) for x in arrays]


def forward(q, k, v, log_decay, state, *, scale, chunk, save):
    """(o, last state, states at the starts of chunks [chunks, b, h, k, v] or None unless `save`)."""
    length, chunks = q.shape[1], -(-q.shape[1] // chunk)
    precision = _precision(q, k, v)
    inputs = [_pad(x, chunks * chunk) for x in (q, k, v, log_decay)]

    def step(j, carry):
        s, o, starts = carry
        starts = None if starts is None else lax.dynamic_update_index_in_dim(starts, s, j, axis=0)
        rows, s = _one_chunk(precision, scale, *_slices(inputs, j, chunk), s)
        return s, lax.dynamic_update_slice_in_dim(o, rows.astype(o.dtype), j * chunk, axis=1), starts

    starts = jnp.zeros((chunks, *state.shape), state.dtype) if save else None
    state, o, starts = lax.fori_loop(0, chunks, step, (state, jnp.zeros_like(inputs[2]), starts))
    return o[:, :length], state, starts


def backward(q, k, v, log_decay, starts, d_o, d_last, *, scale, chunk):
    """(dq, dk, dv, dlog_decay, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    length, chunks = q.shape[1], starts.shape[0]
    precision = _precision(q, k, v)
    q, k, v, log_decay, d_o = (_pad(x, chunks * chunk) for x in (q, k, v, log_decay, d_o))

    def step(m, carry):
        r, grads = carry
        j = chunks - 1 - m
        s = lax.dynamic_index_in_dim(starts, j, axis=0, keepdims=False)
        *inputs, d_rows = _slices((q, k, v, log_decay, d_o), j, chunk)
        _, pull = jax.vjp(lambda *args: _one_chunk(precision, scale, *args), *inputs, s)
        *rows, r = pull((d_rows.astype(s.dtype), r))
        grads = [
            None if x is None else lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), j * chunk, axis=1)
            for x, y in zip(grads, rows, strict=True)
        ]
        return r, grads

    empty = [None if x is None else jnp.zeros_like(x) for x in (q, k, v, log_decay)]
    r, grads = lax.fori_loop(0, chunks, step, (d_last, empty))
    return *(None if x is None else x[:, :length] for x in grads), r
