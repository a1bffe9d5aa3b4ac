"""One token at a time, in place: best on CPUs, where a state stays in cache and matrix products are dear.

Forward: a `fori_loop` over axis 1 that writes each output row into a preallocated array. Backward: only the states at the starts of
chunks are kept; those inside one chunk are recomputed into a scratch of c states, then walked backwards with R_t = dL/dS_t:

    R_t = scale q_t do_t^T + A_{t+1} * R_{t+1} + a_{t+1} du_{t+1}^T        A_t = exp(g_t + gv_t^T), [k, v]
    dq_t = scale S_t do_t,   dk_t = R_t v_t,   dv_t = R_t^T k_t,   dg_t, dgv_t = row and column sums of A_t * S_{t-1} * R_t
    u_t = S_{t-1}^T a_t,   du_t = R_t^T b_t,   da_t = S_{t-1} du_t,   db_t = R_t u_t       (k for b: u_t has v_t, dk_t = R_t u_t)

(an exclusive read has q_{t+1} do_{t+1}^T in R_t, and S_{t-1} in dq_t), so that a decay's gradient is formed directly, never as a
difference of running sums. Shapes as in `grouping.py`.
Cost: O(t k v) time; memory beyond the inputs t/c + c states per head, and u.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..common.loops import get_step, set_step
from ..common.vma import zeros_like_vma
from .grouping import fade, outer, read, read_values, share, update


def _at(transition, t):
    return jax.tree.map(lambda x: get_step(x, t), transition)


def forward(q, k, v, transition, state, *, scale, exclusive, chunk, save):
    """(o, last state, what `backward` needs of both or None unless `save`): states at the starts of chunks [chunks, b, h, k, v],
    and u [b, t, h, v] or None without a low-rank term."""
    length, heads, dtype = q.shape[1], v.shape[2], state.dtype
    factors = transition.factors(dtype)

    def step(i, carry):
        s, o, us = carry
        q_t = scale * share(get_step(q, i), heads).astype(dtype)
        if exclusive:
            o = set_step(o, read(q_t, s), i)
        s, u = update(_at(factors, i), get_step(k, i), get_step(v, i), s)
        return s, o if exclusive else set_step(o, read(q_t, s), i), us if us is None else set_step(us, u, i)

    def one_chunk(j, carry):
        s, o, us, starts = carry
        starts = set_step(starts, s, j, axis=0)
        return *lax.fori_loop(j * chunk, jnp.minimum((j + 1) * chunk, length), step, (s, o, us)), starts

    o = zeros_like_vma(v)
    if not save:
        state, o, _ = lax.fori_loop(0, length, step, (state, o, None))
        return o, state, None
    chunks = -(-length // chunk)
    us = None if transition.a is None else zeros_like_vma(v, dtype=dtype)
    starts = zeros_like_vma(state, (chunks, *state.shape))
    state, o, us, starts = lax.fori_loop(0, chunks, one_chunk, (state, o, us, starts))
    return o, state, (starts, us)


def backward(q, k, v, transition, kept, d_o, d_last, *, scale, exclusive, chunk):
    """(dq, dk, dv, dtransition, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    starts, us = kept
    (batch, length, groups, width), heads, dtype = q.shape, v.shape[2], d_last.dtype
    factors = transition.factors(dtype)

    def per_group(x):
        return jnp.sum(x.reshape(batch, groups, heads // groups, width), axis=2)

    def d_output(t):
        return scale * get_step(d_o, t).astype(dtype)

    def per_head(x, t):
        return share(get_step(x, t), heads).astype(dtype)

    def recompute(first, i, carry):
        s, befores, dq = carry
        befores = set_step(befores, s, i, axis=0)
        after, _ = update(_at(factors, first + i), get_step(k, first + i), get_step(v, first + i), s)
        return after, befores, set_step(dq, per_group(read_values(d_output(first + i), s if exclusive else after)), first + i)

    def back(first, befores, i, carry):
        # r arrives as dL/dS of the token after, `behind` as that token's factors and what it reads: with one update per step XLA
        # keeps one copy of r.
        r, behind, dk, dv, gradients = carry
        t = first + i
        r = _passed_back(behind, r, exclusive, (per_head(q, t), d_output(t)))
        at, before = _at(factors, t), get_step(befores, i, axis=0)
        k_t, v_t = per_head(k, t), get_step(v, t).astype(dtype)
        d_v = read(k_t, r)
        if at.a is None:
            written, low_rank, read_with = v_t, {}, None
        else:
            u, d_u = get_step(us, t), d_v if at.b is None else read(per_head(transition.b, t), r)
            written, read_with = u if at.b is None else v_t, (per_head(transition.a, t), d_u)
            low_rank = {"a": per_group(read_values(d_u, before))}
            low_rank |= {} if at.b is None else {"b": per_group(read_values(u, r))}
        dk, dv = set_step(dk, per_group(read_values(written, r)), t), set_step(dv, d_v, t)
        here = _decays(at, before, r)._replace(**low_rank)
        gradients = jax.tree.map(lambda x, y: set_step(x, y, t), gradients, here)
        return r, (at, read_with, (per_head(q, t), d_output(t))), dk, dv, gradients

    def one_chunk(m, carry):
        befores, dq, *rest = carry
        j = starts.shape[0] - 1 - m
        first = j * chunk
        count = jnp.minimum(chunk, length - first)
        _, befores, dq = lax.fori_loop(0, count, lambda i, c: recompute(first, i, c), (get_step(starts, j, axis=0), befores, dq))
        rest = lax.fori_loop(0, count, lambda i, c: back(first, befores, count - 1 - i, c), tuple(rest))
        return befores, dq, *rest

    befores = zeros_like_vma(starts, (chunk, *starts.shape[1:]))
    dq, dk, dv = (zeros_like_vma(x) for x in (q, k, v))
    nothing = zeros_like_vma(per_head(q, 0)), zeros_like_vma(d_output(0))
    keep = jax.tree.map(lambda x: zeros_like_vma(x[:, 0]) + 1, factors)
    behind = keep, None if transition.a is None else nothing, nothing
    carry = (befores, dq, d_last, behind, dk, dv, jax.tree.map(zeros_like_vma, transition))
    _, dq, r, behind, dk, dv, gradients = lax.fori_loop(0, starts.shape[0], one_chunk, carry)
    first = behind if exclusive else (*behind[:2], nothing)
    return dq, dk, dv, gradients, _passed_back(first, r, True, nothing)


def _passed_back(behind, r, exclusive, here):
    """dL/dS of a token, from that of the token after; each read, (what, gradient), adds its outer product."""
    at, low_rank, output = behind
    r = fade(at, r) + outer(*(output if exclusive else here))
    return r if low_rank is None else r + outer(*low_rank)


def _decays(at, before, r):
    """Gradients of one token's log decays: sums of decay * S_{t-1} * R_t over the axes that they do not have.

    As products with ones: XLA's CPU code for a plain sum over the last axis adds one number at a time.
    """
    product = before * r
    if at.value is None:
        if at.key is None:
            return at
        of_keys = read_values(jnp.ones_like(product[:, :, 0]), product)
        return at._replace(key=at.key * (of_keys if at.key.ndim == 3 else jnp.sum(of_keys, axis=-1)))
    of_values = at.value * read(jnp.ones_like(product[..., 0]) if at.key is None else at.key, product)
    if at.key is None:
        return at._replace(value=of_values)
    return at._replace(key=at.key * read_values(at.value, product), value=of_values)
