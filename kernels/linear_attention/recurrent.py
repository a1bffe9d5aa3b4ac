r"""Recurrent form: one token at a time, in place. Best on CPUs, where the state stays in cache and matrix products are expensive.

Forward: a `fori_loop` over tokens that writes each output into a preallocated array. For a backward pass it saves the state every
`chunk_size` tokens (a checkpoint), and u.

          S_0 ---- chunk 1 ---- S_c ---- chunk 2 ---- S_2c ---- ...      forward: checkpoints S_0, S_c, S_2c, ...
                                 |
                                 recompute S_c .. S_2c-1, then walk back from R_2c to R_c                  backward

Backward, from the last chunk to the first: recompute the states of one chunk from its checkpoint, then walk back through its
tokens with R_t = dL/dS_t:

    R_t = scale q_t do_t^T + A_{t+1} * R_{t+1} + a_{t+1} du_{t+1}^T        A_t = exp(g_t + gv_t^T), [k, v]
    dq_t = scale S_t do_t,   dk_t = R_t v_t,   dv_t = R_t^T k_t,   dg_t, dgv_t = row and column sums of A_t * S_{t-1} * R_t
    u_t = S_{t-1}^T a_t,   du_t = R_t^T b_t,   da_t = S_{t-1} du_t,   db_t = R_t u_t       (k for b: u_t has v_t, dk_t = R_t u_t)

(read before the write: R_t has scale q_{t+1} do_{t+1}^T instead, and dq_t has S_{t-1}). The gradient of a decay is formed directly,
never as a difference of running sums.
Cost: O(t k v) time; memory beyond the inputs t/c + c states per head, and u. Shapes: see `transition.py`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..common import xla_cpu
from ..common.first_order import first_order
from ..common.loops import get_step, set_step
from ..common.vma import zeros_like_vma
from .transition import (
    broadcast_heads,
    decay_state,
    outer_product,
    query_state,
    query_state_transposed,
    read_state,
    update_state,
)


def forward(q, k, v, transition, state, *, scale, read_before_write, chunk_size, resets, output_dtype, save):
    """Computes (o, last state, residuals).

    Residuals, None unless `save`: the states before each chunk [chunks, b, h, k, v], and u [b, t, h, v], None without a low-rank
    term.
    """
    length, heads, dtype = q.shape[1], v.shape[2], state.dtype
    factors = transition.factors(dtype)

    def token(t, carry):
        before, o, us = carry
        q_t = scale * broadcast_heads(get_step(q, t), heads).astype(dtype)
        after, u = update_state(get_token(factors, t), get_step(k, t), get_step(v, t), before, resets)
        o = set_step(o, read_state(q_t, before if read_before_write else after, resets), t)
        return after, o, us if u is None or us is None else set_step(us, u, t)

    def chunk(j, carry):
        s, o, us, checkpoints = carry
        checkpoints = set_step(checkpoints, s, j, axis=0)
        end = jnp.minimum((j + 1) * chunk_size, length)
        return *lax.fori_loop(j * chunk_size, end, token, (s, o, us)), checkpoints

    o = zeros_like_vma(v, dtype=output_dtype)
    if not save:
        state, o, _ = lax.fori_loop(0, length, token, (state, o, None))
        return o, state, None
    chunks = -(-length // chunk_size)
    us = None if transition.a is None else zeros_like_vma(v, dtype=dtype)
    checkpoints = zeros_like_vma(state, (chunks, *state.shape))
    state, o, us, checkpoints = lax.fori_loop(0, chunks, chunk, (state, o, us, checkpoints))
    return first_order("linear_attention", (o, state, (checkpoints, us)))


def backward(q, k, v, transition, residuals, d_o, d_last, *, scale, read_before_write, chunk_size, resets, output_dtype):
    """Computes (dq, dk, dv, dtransition, dstate), in the inputs' dtypes, from the gradients of o and of the last state."""
    checkpoints, us = residuals
    (batch, length, groups, width), heads, dtype = q.shape, v.shape[2], d_last.dtype
    factors = transition.factors(dtype)

    def sum_heads(x):  # [b, h, k] -> [b, n, k]
        return jnp.sum(x.reshape(batch, groups, heads // groups, width), axis=2)

    def per_head(x, t):
        return broadcast_heads(get_step(x, t), heads).astype(dtype)

    def output_gradient(t):
        return scale * get_step(d_o, t).astype(dtype)

    def recompute(first, i, carry):
        before, states, dq = carry
        t = first + i
        states = set_step(states, before, i, axis=0)
        after, _ = update_state(get_token(factors, t), get_step(k, t), get_step(v, t), before, resets)
        dq_t = sum_heads(query_state_transposed(output_gradient(t), before if read_before_write else after))
        return after, states, set_step(dq, dq_t, t)

    def walk_back(first, states, i, carry):
        # r is dL/dS of the token after, `after` holds that token's factors and queries. Both are applied here, not at the end of
        # that token's step: with one update per step XLA keeps one copy of r.
        r, after, dk, dv, gradients = carry
        t = first + i
        read = per_head(q, t), output_gradient(t)
        r = state_gradient(after, r, read_before_write, read, resets)
        factors_t, before = get_token(factors, t), get_step(states, i, axis=0)
        k_t, v_t = per_head(k, t), get_step(v, t).astype(dtype)
        dv_t = query_state(k_t, r)
        if factors_t.a is None:
            written, low_rank, low_rank_read = v_t, {}, None
        else:
            u, du = get_step(us, t), dv_t if factors_t.b is None else query_state(per_head(transition.b, t), r)
            written, low_rank_read = u if factors_t.b is None else v_t, (per_head(transition.a, t), du)
            low_rank = {"a": sum_heads(query_state_transposed(du, before))}
            low_rank |= {} if factors_t.b is None else {"b": sum_heads(query_state_transposed(u, r))}
        dk, dv = set_step(dk, sum_heads(query_state_transposed(written, r)), t), set_step(dv, dv_t, t)
        gradients_t = decay_gradients(factors_t, before, r)._replace(**low_rank)
        gradients = jax.tree.map(lambda x, y: set_step(x, y, t), gradients, gradients_t)
        return r, (factors_t, low_rank_read, read), dk, dv, gradients

    def chunk_back(m, carry):
        states, dq, *rest = carry
        j = checkpoints.shape[0] - 1 - m
        first = j * chunk_size
        count = jnp.minimum(chunk_size, length - first)
        start = get_step(checkpoints, j, axis=0), states, dq
        _, states, dq = lax.fori_loop(0, count, lambda i, carry: recompute(first, i, carry), start)
        rest = lax.fori_loop(0, count, lambda i, carry: walk_back(first, states, count - 1 - i, carry), tuple(rest))
        return states, dq, *rest

    states = zeros_like_vma(checkpoints, (chunk_size, *checkpoints.shape[1:]))
    dq, dk, dv = (zeros_like_vma(x) for x in (q, k, v))
    no_read = zeros_like_vma(per_head(q, 0)), zeros_like_vma(output_gradient(0))
    keep = jax.tree.map(lambda x: zeros_like_vma(x[:, 0]) + 1, factors)
    after = keep, None if transition.a is None else no_read, no_read
    carry = (states, dq, d_last, after, dk, dv, jax.tree.map(zeros_like_vma, transition))
    _, dq, r, after, dk, dv, gradients = lax.fori_loop(0, checkpoints.shape[0], chunk_back, carry)
    first = after if read_before_write else (*after[:2], no_read)
    return first_order("linear_attention", (dq, dk, dv, gradients, state_gradient(first, r, True, no_read, resets)))


def get_token(transition, t):
    """One token of a transition."""
    return jax.tree.map(lambda x: get_step(x, t), transition)


def state_gradient(after, r, read_before_write, read, resets):
    """R_t from R_{t+1}, the token after (its factors and reads), and this token's read: a query and the gradient of its output."""
    factors, low_rank_read, read_after = after
    r = decay_state(factors, r, resets) + outer_product(*(read_after if read_before_write else read))
    return r if low_rank_read is None else r + outer_product(*low_rank_read)


def decay_gradients(factors, before, r):
    """Gradients of one token's log decays: sums of decay * S_{t-1} * R_t over the axes that they do not have."""
    product = before * r
    if factors.value_decay is None:
        if factors.key_decay is None:
            return factors
        of_keys = xla_cpu.sum_keepdims(product, axis=-1)[..., 0]
        of_keys = of_keys if factors.key_decay.ndim == 3 else jnp.sum(of_keys, axis=-1)
        return factors._replace(key_decay=factors.key_decay * of_keys)
    if factors.key_decay is None:
        return factors._replace(value_decay=factors.value_decay * jnp.sum(product, axis=-2))
    of_values = factors.value_decay * query_state(factors.key_decay, product)
    of_keys = factors.key_decay * query_state_transposed(factors.value_decay, product)
    return factors._replace(key_decay=of_keys, value_decay=of_values)
