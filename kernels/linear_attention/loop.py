"""One token at a time, in place: best on CPUs, where a state stays in cache and matrix products are dear.

Forward: a `fori_loop` over axis 1 that writes each output row into a preallocated array. Backward: only the states at the starts of
chunks are kept; those inside one chunk are recomputed into a scratch of c states, then walked backwards with R_t = dL/dS_t:

    R_t = scale q_t do_t^T + exp(g_{t+1}) R_{t+1}
    dq_t = scale S_t do_t,   dk_t = R_t v_t,   dv_t = R_t^T k_t,   dg_t = exp(g_t) sum_v S_{t-1} * R_t

so that the decay's gradient is formed directly, never as a difference of running sums. Shapes as in `grouping.py`.
Cost: O(t k v) time; memory beyond the inputs t/c + c states per head.
"""

import jax.numpy as jnp
from jax import lax

from ..common.rows import put, row
from ..common.varying import zeros
from .grouping import over_state, share


def _write(k, v, decay, s, i):
    """S_i from S_{i-1}."""
    k_t, v_t = share(row(k, i), v.shape[2]).astype(s.dtype), row(v, i).astype(s.dtype)
    decayed = s if decay is None else over_state(row(decay, i)) * s
    return decayed + k_t[..., None] * v_t[..., None, :]


def forward(q, k, v, log_decay, state, *, scale, chunk, save):
    """(o, last state, states at the starts of chunks [chunks, b, h, k, v] or None unless `save`)."""
    length, heads, dtype = q.shape[1], v.shape[2], state.dtype
    decay = None if log_decay is None else jnp.exp(log_decay.astype(dtype))

    def step(i, carry):
        s, o = carry
        s = _write(k, v, decay, s, i)
        q_t = scale * share(row(q, i), heads).astype(dtype)
        return s, put(o, _read(q_t, s), i)

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


def backward(q, k, v, log_decay, starts, d_o, d_last, *, scale, chunk):
    """(dq, dk, dv, dlog_decay, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    (batch, length, groups, width), heads, dtype = q.shape, v.shape[2], d_last.dtype
    decay = None if log_decay is None else jnp.exp(log_decay.astype(dtype))

    def per_group(x):
        return jnp.sum(x.reshape(batch, groups, heads // groups, width), axis=2)

    def d_output(t):
        return scale * row(d_o, t).astype(dtype)

    def recompute(first, i, carry):
        s, befores, dq = carry
        befores = put(befores, s, i, axis=0)
        s = _write(k, v, decay, s, first + i)
        return s, befores, put(dq, per_group(_read_values(d_output(first + i), s)), first + i)

    def back(first, befores, i, carry):
        # r arrives as dL/dS of the token after, `fade` as that token's decay: with one update per step XLA keeps one copy of r.
        r, fade, dk, dv, dg = carry
        t = first + i
        q_t, k_t = (share(row(x, t), heads).astype(dtype) for x in (q, k))
        r = (r if fade is None else over_state(fade) * r) + q_t[..., None] * d_output(t)[..., None, :]
        dk = put(dk, per_group(_read_values(row(v, t).astype(dtype), r)), t)
        dv = put(dv, _read(k_t, r), t)
        if decay is not None:
            fade = row(decay, t)
            dg = put(dg, fade * _inner(row(befores, i, axis=0), r, fade.ndim), t)
        return r, fade, dk, dv, dg

    def one_chunk(m, carry):
        befores, dq, *rest = carry
        j = starts.shape[0] - 1 - m
        first = j * chunk
        count = jnp.minimum(chunk, length - first)
        _, befores, dq = lax.fori_loop(0, count, lambda i, c: recompute(first, i, c), (row(starts, j, axis=0), befores, dq))
        rest = lax.fori_loop(0, count, lambda i, c: back(first, befores, count - 1 - i, c), tuple(rest))
        return befores, dq, *rest

    befores = zeros(starts, (chunk, *starts.shape[1:]))
    dq, dk, dv, dg = (None if x is None else zeros(x) for x in (q, k, v, log_decay))
    fade = None if decay is None else zeros(decay[:, 0]) + 1
    _, dq, r, fade, dk, dv, dg = lax.fori_loop(0, starts.shape[0], one_chunk, (befores, dq, d_last, fade, dk, dv, dg))
    return dq, dk, dv, dg, r if fade is None else over_state(fade) * r


def _inner(x, y, axes):
    """The sum of x * y over all but the first `axes` axes (2: k and v, 3: v) of states, as a product with ones.

    XLA's CPU code for a plain sum over the last axis adds one number at a time.
    """
    x = x * y
    if axes == 3:
        return _read_values(jnp.ones_like(x[:, :, 0]), x)
    return jnp.sum(_read(jnp.ones_like(x[..., 0]), x), axis=-1)
