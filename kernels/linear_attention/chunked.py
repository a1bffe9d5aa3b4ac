r"""Chunks of tokens by matrix products: best on accelerators, and on CPUs for wide states with at most one decay per head.

Inside a chunk of c tokens, with D_ij = g_{j+1} + ... + g_i (0 for i = j) and S the state before the chunk:

    o_i = scale (exp(g_1 + ... + g_i) q_i)^T S + scale \sum_{j <= i} (\sum_k q_ik k_jk exp(D_ijk)) v_j
    S'  = Diag(exp(g_1 + ... + g_c)) S + \sum_j (exp(D_cj) k_j) v_j^T

Every exponent is a sum of non-positive terms, formed as such: subtracting running sums, the usual way, loses digits after a strong
reset and makes NaN after an infinite one. With a decay per channel, exp(D_ijk) is only formed for pairs inside
sub-blocks of 16 tokens; between sub-blocks it is the product of j's suffix, the whole sub-blocks between and i's prefix, which are
absorbed into k and q so that a matrix product does the sum over k ("secondary chunking", Yang et al., 2023, arXiv:2312.06635).
Backward: chunks in reverse, each differentiated by JAX from the state saved at its start. Shapes as in `grouping.py`, inside a
chunk with time moved behind the heads.
Cost per head and chunk: 2 c^2 (k + v) + 4 c k v multiply-adds; memory beyond the inputs t/c states per head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..common.varying import zeros
from .grouping import merge, split

SUB_BLOCK = 16  # pairs inside it cost k exponentials each; Yang et al. 2023 and fla use 16


def _prefix(g):
    """[..., c, x]: the sum up to and including each row."""
    return lax.cumsum(g, axis=g.ndim - 2)


def _suffix(g):
    """[..., c, x]: the sum after each row."""
    later = jnp.concatenate([g[..., 1:, :], jnp.zeros_like(g[..., :1, :])], axis=-2)
    return lax.cumsum(later, axis=g.ndim - 2, reverse=True)


def _pairs(g):
    """[..., c, c, x]: the sum over j < l <= i; -inf above the diagonal, j > i."""
    shape = (*g.shape[:-1], *g.shape[-2:])
    row, column = (lax.broadcasted_iota(jnp.int32, shape, g.ndim - axis) for axis in (2, 1))
    after_j = jnp.where(row > column, jnp.broadcast_to(g[..., :, None, :], shape), 0.0)
    return jnp.where(row >= column, lax.cumsum(after_j, axis=g.ndim - 2), -jnp.inf)


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
    b, h, c, _ = g.shape
    sub = max(x for x in range(1, SUB_BLOCK + 1) if c % x == 0)
    q, k, v, g = (x.reshape(b, h, c // sub, sub, x.shape[-1]) for x in (q, k, v, g))
    total, prefix, suffix = jnp.sum(g, axis=-2), _prefix(g), _suffix(g)
    inside = jnp.sum(q[..., :, None, :] * k[..., None, :, :] * jnp.exp(_pairs(g)), axis=-1)
    o = dot("bhBij,bhBjv->bhBiv", inside, v)
    rows = []
    since_start = jnp.zeros_like(total[:, :, 0, None])  # [b, h, 1, k]: of the whole sub-blocks before sub-block i
    reach = suffix[:, :, :0]  # [b, h, i, sub, k]: from each row before sub-block i to its start
    for i in range(c // sub):
        q_i = q[:, :, i] * jnp.exp(prefix[:, :, i])
        row = o[:, :, i] + dot("bhik,bhkv->bhiv", q_i * jnp.exp(since_start), s)
        if i:
            scores = dot("bhik,bhBjk->bhiBj", q_i, k[:, :, :i] * jnp.exp(reach))
            row = row + dot("bhiBj,bhBjv->bhiv", scores, v[:, :, :i])
        rows.append(row)
        step = total[:, :, i, None]
        since_start = since_start + step
        reach = jnp.concatenate([reach + step[:, :, :, None], suffix[:, :, i, None]], axis=2)
    written = dot("bhBjk,bhBjv->bhkv", k * jnp.exp(reach), v)
    return jnp.concatenate(rows, axis=2), jnp.exp(since_start[:, :, 0, :, None]) * s + written


def _one_chunk(precision, scale, q, k, v, log_decay, s):
    """(o [b, c, h, v], the state after the chunk), both in the state's dtype."""
    groups = q.shape[2]

    def dot(spec, x, y):
        return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=s.dtype)

    q, k, v = (jnp.moveaxis(x.astype(s.dtype), 1, 2) for x in (q, k, v))
    g = None if log_decay is None else jnp.moveaxis(log_decay.astype(s.dtype), 1, 2)
    if g is not None and g.ndim == 4:
        # Not (n, r): scores are per head anyway, and summing 7 axes over r crashes jaxlib 0.10.2 on CPUs.
        q, k = (jnp.repeat(x, v.shape[1] // groups, axis=1) for x in (q, k))
        o, s = _channel_decay(dot, q, k, v, g, s)
    else:
        v, s = split(v, groups), split(s, groups)
        o, s = _no_decay(dot, q, k, v, s) if g is None else _head_decay(dot, q, k, v, split(g, groups), s)
        o, s = merge(o), merge(s)
    return scale * jnp.moveaxis(o, 2, 1), s


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

    starts = zeros(state, (chunks, *state.shape)) if save else None
    state, o, starts = lax.fori_loop(0, chunks, step, (state, zeros(inputs[2]), starts))
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

    empty = [None if x is None else zeros(x) for x in (q, k, v, log_decay)]
    r, grads = lax.fori_loop(0, chunks, step, (d_last, empty))
    return *(None if x is None else x[:, :length] for x in grads), r
