r"""What a piece of the sequence does to any state: S' = decay * S + added, or P S + added. For time cut over devices.

    decay = exp(G_1 + ... + G_t)      added = \sum_j exp(G_{j+1} + ... + G_t) * k_j v_j^T        G_t = g_t + gv_t^T, [k, v]

and the same of gradients, R = decay * R' + scale \sum_i exp(G_1 + ... + G_i) * q_i do_i^T (up to G_{i-1} for an exclusive read).
One matrix product each, no outputs. All exponents are sums of non-positive terms, formed as such. With a low-rank term P is [k, k]:
the piece runs on the unit matrix beside its own values; its gradients run backwards, each step's matrix transposed.
Shapes as in `grouping.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..common.vma import zeros_like_vma
from .grouping import Transition, merge


class Summary(NamedTuple):
    """See above."""

    decay: Array | None  # [b, h, k, v], or axes of size 1
    matrix: Array | None  # P [b, h, k, k]
    added: Array  # [b, h, k, v]


def forward(run: Callable, k: Array, v: Array, transition: Transition, dtype) -> Summary:
    """Of the tokens; `run` is a form's forward pass: (o, last state, ...) from (q, k, v, transition, state)."""
    if transition.a is not None:
        return _matrix(run, k, v, transition, dtype)
    later = jax.tree.map(lambda g: _others(g.astype(dtype), reverse=True), transition)
    return Summary(_decay(v, transition, dtype), None, _written(k.astype(dtype), v.astype(dtype), later))


def backward(
    run: Callable, q: Array, k: Array, d_o: Array, transition: Transition, dtype, scale: float, exclusive: bool
) -> Summary:
    """The same of gradients, from those of the outputs."""
    if transition.a is not None:
        # For reads behind the writes the last token's come before its matrix, and the first token's matrix last.
        turn = lambda x, rest: jnp.flip(x if exclusive else jnp.pad(x, [(0, 0), rest, *[(0, 0)] * (x.ndim - 2)]), axis=1)
        transposed = transition._replace(a=k if transition.b is None else transition.b, b=transition.a)
        steps = jax.tree.map(lambda x: turn(x, (0, 1)), transposed)
        summary = _matrix(run, turn(q, (1, 0)), turn(d_o, (1, 0)), steps, dtype)
        return summary._replace(added=scale * summary.added)
    so_far = _others if exclusive else lambda g: lax.cumsum(g, axis=1)
    exponents = jax.tree.map(lambda g: so_far(g.astype(dtype)), transition)
    return Summary(_decay(d_o, transition, dtype), None, scale * _written(q.astype(dtype), d_o.astype(dtype), exponents))


def compose(state: Array, summary: Summary) -> Array:
    """The state after a piece."""
    if summary.matrix is None:
        return summary.decay * state + summary.added
    return jnp.einsum("bhij,bhjv->bhiv", summary.matrix, state, precision=lax.Precision.HIGHEST) + summary.added


def _matrix(run, k, v, transition, dtype):
    (batch, length, heads, width), rank = v.shape, k.shape[-1]
    wide = jnp.concatenate([v.astype(dtype), zeros_like_vma(v, (batch, length, heads, rank), dtype)], axis=-1)
    unit = zeros_like_vma(v, (batch, heads, rank, rank), dtype) + jnp.eye(rank, dtype=dtype)[None, None]
    start = jnp.concatenate([zeros_like_vma(v, (batch, heads, rank, width), dtype), unit], axis=-1)
    _, last, _ = run(jnp.zeros_like(k), k, wide, transition, start)
    return Summary(None, last[..., width:], last[..., :width])


def _decay(v, transition, dtype):
    total = jnp.zeros_like(v, shape=(v.shape[0], v.shape[2], 1, 1), dtype=dtype)
    if transition.key is not None:
        key = jnp.sum(transition.key.astype(dtype), axis=1)
        total = total + key.reshape(key.shape + (1,) * (4 - key.ndim))
    if transition.value is not None:
        total = total + jnp.sum(transition.value.astype(dtype), axis=1)[:, :, None]
    return jnp.exp(total)


def _others(g, reverse=False):
    """[b, t, ...]: the sum before each token, or after it."""
    none = jnp.zeros_like(g[:, :1])
    others = jnp.concatenate([g[:, 1:], none] if reverse else [none, g[:, :-1]], axis=1)
    return lax.cumsum(others, axis=1, reverse=reverse)


def _written(k, v, exponents):
    """[b, h, k, v], the sum over t of k v^T, each faded by its exponents."""
    if exponents.value is not None:
        v = v * jnp.exp(exponents.value)
    if exponents.key is not None and exponents.key.ndim == 3:
        v = v * jnp.exp(exponents.key)[..., None]
    if exponents.key is not None and exponents.key.ndim == 4:
        k = jnp.repeat(k, v.shape[2] // k.shape[2], axis=2) * jnp.exp(exponents.key)
    groups = k.shape[2]
    v = v.reshape(*v.shape[:2], groups, -1, v.shape[3])
    return merge(jnp.einsum("btnk,btnrv->bnrkv", k, v, precision=lax.Precision.HIGHEST))
