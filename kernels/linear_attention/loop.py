"""One token at a time, in place: best on CPUs, where a state stays in cache and matrix products are dear.

Forward: a `fori_loop` over axis 1 that writes each output row into a preallocated array. Backward: only the states at the starts of
chunks are kept; those inside one chunk are recomputed into a scratch of c states, then walked backwards with R_t = dL/dS_t:

    R_t = scale q_t do_t^T + A_{t+1} * R_{t+1}        A_t = exp(g_t + gv_t^T), [k, v]
    dq_t = scale S_t do_t,   dk_t = R_t v_t,   dv_t = R_t^T k_t,   dg_t, dgv_t = row and column sums of A_t * S_{t-1} * R_t

(an exclusive read has q_{t+1} do_{t+1}^T in R_t, and S_{t-1} in dq_t), so that a decay's gradient is formed directly, never as a
difference of running sums. Shapes as in `grouping.py`.
Cost: O(t k v) time; memory beyond the inputs t/c + c states per head.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..common.rows import put, row
from ..common.varying import zeros
from .grouping import Decays, fade, share


def _factors(decays, dtype):
    return jax.tree.map(lambda g: jnp.exp(g.astype(dtype)), decays)


def _at(decays, t):
    return jax.tree.map(lambda x: row(x, t), decays)


def _write(k, v, decays, s, i):
    """S_i from S_{i-1}."""
    k_t, v_t = share(row(k, i), v.shape[2]).astype(s.dtype), row(v, i).astype(s.dtype)
    return fade(_at(decays, i), s) + k_t[..., None] * v_t[..., None, :]


def forward(q, k, v, decays, state, *, scale, exclusive, chunk, save):
    """(o, last state, states at the starts of chunks [chunks, b, h, k, v] or None unless `save`)."""
    length, heads, dtype = q.shape[1], v.shape[2], state.dtype
    decays = _factors(decays, dtype)

    def step(i, carry):
        s, o = carry
        q_t = scale * share(row(q, i), heads).astype(dtype)
        if exclusive:
            o = put(o, _read(q_t, s), i)
        s = _write(k, v, decays, s, i)
        return s, o if exclusive else put(o, _read(q_t, s), i)

    def one_chunk(j, carry):
        s, o, starts = carry
        starts = put(starts, s, j, axis=0)
        s, o = lax.fori_loop(j * chunk, jnp.minimum((j + 1) * chunk, length), step, (s, o))
        return s, o, starts

    o = zeros(v)
    if not save:
        state, o = lax.fori_loop(0, length, step, (state, o))
        return o, state, None
    chunks = -(-length // chunk)
    starts = zeros(state, (chunks, *state.shape))
    state, o, starts = lax.fori_loop(0, chunks, one_chunk, (state, o, starts))
    return o, state, starts


def _read(x, s):
    """[b, h, k] by [b, h, k, v] -> [b, h, v]."""
    return jnp.einsum("bhk,bhkv->bhv", x, s, precision=lax.Precision.HIGHEST)


def _read_values(x, s):
    """[b, h, v] by [b, h, k, v] -> [b, h, k]."""
    return jnp.einsum("bhv,bhkv->bhk", x, s, precision=lax.Precision.HIGHEST)


def backward(q, k, v, decays, starts, d_o, d_last, *, scale, exclusive, chunk):
    """(dq, dk, dv, ddecays, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    (batch, length, groups, width), heads, dtype = q.shape, v.shape[2], d_last.dtype
    factors = _factors(decays, dtype)

    def per_group(x):
        return jnp.sum(x.reshape(batch, groups, heads // groups, width), axis=2)

    def d_output(t):
        return scale * row(d_o, t).astype(dtype)

    def query(t):
        return share(row(q, t), heads).astype(dtype)

    def recompute(first, i, carry):
        s, befores, dq = carry
        befores = put(befores, s, i, axis=0)
        after = _write(k, v, factors, s, first + i)
        return after, befores, put(dq, per_group(_read_values(d_output(first + i), s if exclusive else after)), first + i)

    def back(first, befores, i, carry):
        # r arrives as dL/dS of the token after, `behind` as that token's decays and what it reads: with one update per step XLA
        # keeps one copy of r.
        r, behind, dk, dv, d_decays = carry
        t = first + i
        here = _at(factors, t), query(t), d_output(t)
        r = fade(behind[0], r) + _outer(*(behind if exclusive else here)[1:])
        dk = put(dk, per_group(_read_values(row(v, t).astype(dtype), r)), t)
        dv = put(dv, _read(share(row(k, t), heads).astype(dtype), r), t)
        d_decays = jax.tree.map(lambda x, y: put(x, y, t), d_decays, _inner(here[0], row(befores, i, axis=0), r))
        return r, here, dk, dv, d_decays

    def one_chunk(m, carry):
        befores, dq, *rest = carry
        j = starts.shape[0] - 1 - m
        first = j * chunk
        count = jnp.minimum(chunk, length - first)
        _, befores, dq = lax.fori_loop(0, count, lambda i, c: recompute(first, i, c), (row(starts, j, axis=0), befores, dq))
        rest = lax.fori_loop(0, count, lambda i, c: back(first, befores, count - 1 - i, c), tuple(rest))
        return befores, dq, *rest

    befores = zeros(starts, (chunk, *starts.shape[1:]))
    dq, dk, dv = (zeros(x) for x in (q, k, v))
    behind = jax.tree.map(lambda x: zeros(x[:, 0]) + 1, factors), zeros(query(0)), zeros(d_output(0))
    carry = (befores, dq, d_last, behind, dk, dv, jax.tree.map(zeros, decays))
    _, dq, r, behind, dk, dv, d_decays = lax.fori_loop(0, starts.shape[0], one_chunk, carry)
    r = fade(behind[0], r)
    return dq, dk, dv, d_decays, r + _outer(*behind[1:]) if exclusive else r


def _outer(x, y):
    return x[..., None] * y[..., None, :]


def _inner(decays, before, r):
    """Gradients of one token's log decays: sums of decay * S_{t-1} * R_t over the axes that they do not have.

    As products with ones: XLA's CPU code for a plain sum over the last axis adds one number at a time.
    """
    product = before * r
    if decays.value is None:
        if decays.key is None:
            return decays
        of_keys = _read_values(jnp.ones_like(product[:, :, 0]), product)
        return Decays(decays.key * (of_keys if decays.key.ndim == 3 else jnp.sum(of_keys, axis=-1)), None)
    of_values = decays.value * _read(jnp.ones_like(product[..., 0]) if decays.key is None else decays.key, product)
    if decays.key is None:
        return Decays(None, of_values)
    return Decays(decays.key * _read_values(decays.value, product), of_values)
