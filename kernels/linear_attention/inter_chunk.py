r"""Inter-chunk recurrence of the chunkwise form: the state at the start of each chunk, and its gradient.

    S_0 --chunk 0--> S_1 --chunk 1--> S_2 --> ... --> last state

    S_{n+1} = decay_n * S_n + update_n + keys_n^T u_n        u_n = (I - M_n)^{-1} (local_values_n + queries_n S_n)

`update` is what a chunk writes by itself; u is there with a low-rank term only (`LowRank` in `intra_chunk.py`), and then

    u_n = local_u_n + W_n S_n        local_u_n = (I - M_n)^{-1} local_values_n        W_n = (I - M_n)^{-1} queries_n

Only what needs the state before is computed chunk after chunk; all else is computed for all chunks at once, in the gradients too
(JAX's own gradient of the recurrence would stack every term of every step once more). With R_n = dL/dS_n, from the last chunk back:

    du_n = dL/du_n + keys_n R_{n+1}        R_n = decay_n * R_{n+1} + dL/dS_n (outputs) + W_n^T du_n

Arrays have an axis of chunks before those of `intra_chunk.py`; None is a part that is absent.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..common import xla_cpu
from .block_tree import inverse
from .intra_chunk import LowRank

_einsum = functools.partial(xla_cpu.product, precision=lax.Precision.HIGHEST)  # states keep all their digits


class Residuals(NamedTuple):
    """Results of the forward pass that the backward pass need not compute again; None: not saved."""

    states: Array | None = None  # before each chunk [n, z, k, v], only with a u
    u: Array | None = None  # [n, z, c, v]


def propagate_states(decay: Array | None, low_rank: LowRank | None, update: Array | None, s: Array, residuals: Residuals):
    """Computes (the state after the last chunk, the states before each chunk, u or None) from the state s before the first."""
    if low_rank is not None:
        return delta_states(decay, low_rank, update, s, residuals)
    assert update is not None  # only a low-rank term may write all by itself
    if decay is None:
        states = xla_cpu.cumsum(jnp.concatenate([s[None], update]))
        return states[-1], states[:-1], None
    return *decayed_states(decay, update, s), None


@jax.custom_vjp
def decayed_states(decay, update, s):
    """S_{n+1} = decay_n * S_n + update_n: the last state, and those before each chunk."""
    return xla_cpu.scan(lambda s, chunk: (decayed(chunk[0], s) + chunk[1], s), s, (decay, update))


def _decayed_states_forward(decay, update, s):
    last, states = decayed_states(decay, update, s)
    return (last, states), (decay, states)


def _decayed_states_backward(saved, gradients):
    """R_{n+1}, the gradient of the state after chunk n, is that of update_n."""
    decay, states = saved
    d_last, d_states = gradients
    first, after = xla_cpu.scan(lambda r, chunk: (decayed(chunk[0], r) + chunk[1], r), d_last, (decay, d_states), reverse=True)
    return decay_gradient(decay, states, after), after, first


decayed_states.defvjp(_decayed_states_forward, _decayed_states_backward)


@jax.custom_vjp
def delta_states(decay, low_rank, update, s, residuals):
    """`propagate_states` with a low-rank term."""
    return _delta_states_forward(decay, low_rank, update, s, residuals)[0]


def _delta_states_forward(decay, low_rank, update, s, residuals):
    (scores, queries, local_values, keys), (states, u) = low_rank, residuals
    t = inverse(scores.reshape(-1, *scores.shape[2:])).reshape(scores.shape)
    w = _einsum("nzij,nzjk->nzik", t, queries)

    def state_after(s, u, chunk):
        decay, update, keys = chunk
        s = decayed(decay, s) + _einsum("zck,zcv->zkv", keys, u)
        return s if update is None else s + update

    chunks = decay, update, keys
    if u is None:

        def step(s, chunk):
            w, local_u, *rest = chunk
            u = local_u + _einsum("zck,zkv->zcv", w, s)
            return state_after(s, u, rest), (s, u)

        local_u = _einsum("nzij,nzjv->nziv", t, local_values)
        last, (states, u) = xla_cpu.scan(step, s, (w, local_u, *chunks))
    elif states is None:
        of_u = _einsum("nzck,nzcv->nzkv", keys, u)
        last, states, _ = propagate_states(decay, None, of_u if update is None else update + of_u, s, residuals)
    else:
        last = state_after(states[-1], u[-1], jax.tree.map(lambda x: x[-1], chunks))
    return (last, states, u), (decay, low_rank, t, w, update, states, u)


def _delta_states_backward(saved, gradients):
    decay, low_rank, t, w, update, states, u = saved

    def step(r, chunk):
        decay, keys, w, d_states, d_u = chunk
        d_u = d_u + _einsum("zck,zkv->zcv", keys, r)
        return decayed(decay, r) + d_states + _einsum("zck,zcv->zkv", w, d_u), (r, d_u)

    d_last, d_states, d_u = gradients
    chunks = decay, low_rank.keys, w, d_states, d_u
    first, (after, d_u) = xla_cpu.scan(step, d_last, chunks, reverse=True)
    d_values = _einsum("nzij,nziv->nzjv", t, d_u)
    # M is zero on and above its diagonal, and the zeros take no gradient: no mask is needed here.
    d_scores, d_queries = _einsum("nziv,nzjv->nzij", d_values, u), _einsum("nzcv,nzkv->nzck", d_values, states)
    d_low_rank = LowRank(d_scores, d_queries, d_values, _einsum("nzcv,nzkv->nzck", u, after))
    return decay_gradient(decay, states, after), d_low_rank, None if update is None else after, first, Residuals()


delta_states.defvjp(_delta_states_forward, _delta_states_backward)


def decayed(decay, s):
    """The state after a chunk's decay; 0 where that is exactly 0, whatever the state."""
    return s if decay is None else xla_cpu.broadcast(decay, s.shape) * jnp.where(decay == 0, jnp.zeros_like(s), s)


def decay_gradient(decay, states, after):
    """The gradient of a decay, from the states before it and the gradients of those after."""
    return None if decay is None else jax.vjp(lambda decay: decayed(decay, states), decay)[1](after)[0]
