r"""Transition of one shard of the sequence: its effect on any state, for context parallelism (time sharded over devices).

    S' = decay * S + added      decay = exp(G_1 + ... + G_t)      added = \sum_j exp(G_{j+1} + ... + G_t) * k_j v_j^T

with G_t = g_t + gv_t^T, [k, v]. Each device computes its own, all are gathered, and `apply_transition` over those of the earlier
shards gives each device its initial state. States move between devices, sequences do not. Gradients of the state go the other way:

    R = decay * R' + added      added = scale \sum_i exp(G_1 + ... + G_i) * q_i do_i^T      (up to G_{i-1} if read before the write)

One matrix product each, without outputs; all exponents are sums of non-positive terms, formed as such. With a low-rank term decay
is a matrix P [k, k], S' = P S + added: the shard runs on the identity matrix next to its own values, and for gradients backwards
with the matrix of each token transposed. Shapes: see `transition.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..common.vma import zeros_like_vma
from .transition import Transition, merge_heads


class ShardTransition(NamedTuple):
    """S' = decay * S + added, or matrix S + added."""

    decay: Array | None  # [b, h, k, v], or axes of size 1
    matrix: Array | None  # P [b, h, k, k]
    added: Array  # [b, h, k, v]


def apply_transition(state: Array, shard: ShardTransition) -> Array:
    """The state after a shard."""
    if shard.decay is not None:
        return shard.decay * jnp.where(shard.decay == 0, jnp.zeros_like(state), state) + shard.added
    return jnp.einsum("bhij,bhjv->bhiv", shard.matrix, state, precision=lax.Precision.HIGHEST) + shard.added


def state_transition(run: Callable, k: Array, v: Array, transition: Transition, dtype) -> ShardTransition:
    """The transition of states; `run` is the forward pass of an implementation, (q, k, v, transition, state) -> (o, last, ...)."""
    if transition.a is not None:
        return _run_on_identity(run, k, v, transition, dtype)
    to_end = jax.tree.map(lambda g: _sum_others(g.astype(dtype), after=True), transition)
    return ShardTransition(_total_decay(v, transition, dtype), None, _sum_writes(k.astype(dtype), v.astype(dtype), to_end))


def gradient_transition(
    run: Callable, q: Array, k: Array, d_o: Array, transition: Transition, dtype, scale: float, read_before_write: bool
) -> ShardTransition:
    """The transition of gradients of states, from the gradients of the outputs d_o."""
    if transition.a is not None:
        # Reversed in time. Read after the write: the last token's read comes before its matrix, and the first token's matrix last.
        reverse = lambda x, pad: jnp.flip(x if read_before_write else jnp.pad(x, [(0, 0), pad, *[(0, 0)] * (x.ndim - 2)]), axis=1)
        transposed = transition._replace(a=k if transition.b is None else transition.b, b=transition.a)
        reversed_tokens = jax.tree.map(lambda x: reverse(x, (0, 1)), transposed)
        shard = _run_on_identity(run, reverse(q, (1, 0)), reverse(d_o, (1, 0)), reversed_tokens, dtype)
        return shard._replace(added=scale * shard.added)
    from_start = _sum_others if read_before_write else lambda g: lax.cumsum(g, axis=1)
    exponents = jax.tree.map(lambda g: from_start(g.astype(dtype)), transition)
    added = scale * _sum_writes(q.astype(dtype), d_o.astype(dtype), exponents)
    return ShardTransition(_total_decay(d_o, transition, dtype), None, added)


def _run_on_identity(run, k, v, transition, dtype):
    """P and added, from one run on the state [0 | I] with values [v | 0]."""
    (batch, length, heads, width), rank = v.shape, k.shape[-1]
    values = jnp.concatenate([v.astype(dtype), zeros_like_vma(v, (batch, length, heads, rank), dtype)], axis=-1)
    identity = zeros_like_vma(v, (batch, heads, rank, rank), dtype) + jnp.eye(rank, dtype=dtype)[None, None]
    start = jnp.concatenate([zeros_like_vma(v, (batch, heads, rank, width), dtype), identity], axis=-1)
    _, last, _ = run(jnp.zeros_like(k), k, values, transition, start)
    return ShardTransition(None, last[..., width:], last[..., :width])


def _total_decay(v, transition, dtype):
    """exp(G_1 + ... + G_t)."""
    total = jnp.zeros_like(v, shape=(v.shape[0], v.shape[2], 1, 1), dtype=dtype)
    if transition.key_decay is not None:
        key = jnp.sum(transition.key_decay.astype(dtype), axis=1)
        total = total + key.reshape(key.shape + (1,) * (4 - key.ndim))
    if transition.value_decay is not None:
        total = total + jnp.sum(transition.value_decay.astype(dtype), axis=1)[:, :, None]
    return jnp.exp(total)


def _sum_others(g, after=False):
    """Sums of g [b, t, ...] over the tokens before each token, or after it."""
    zero = jnp.zeros_like(g[:, :1])
    others = jnp.concatenate([g[:, 1:], zero] if after else [zero, g[:, :-1]], axis=1)
    return lax.cumsum(others, axis=1, reverse=after)


def _sum_writes(k, v, exponents):
    """Sum over t of k v^T, each decayed by exp of its exponents: [b, h, k, v]."""
    if exponents.value_decay is not None:
        v = v * jnp.exp(exponents.value_decay)
    if exponents.key_decay is not None and exponents.key_decay.ndim == 3:
        v = v * jnp.exp(exponents.key_decay)[..., None]
    if exponents.key_decay is not None and exponents.key_decay.ndim == 4:
        k = jnp.repeat(k, v.shape[2] // k.shape[2], axis=2) * jnp.exp(exponents.key_decay)
    v = v.reshape(*v.shape[:2], k.shape[2], -1, v.shape[3])
    return merge_heads(jnp.einsum("btnk,btnrv->bnrkv", k, v, precision=lax.Precision.HIGHEST))
