r"""What a chunk's tokens give each other, and what they do to a state: all chunks at once, for JAX to differentiate.

With A_ij = exp(g_{j+1} + ... + g_i), the decay between two tokens, and S the state before a chunk,

    o_i = \sum_{j <= i} (q_i^T A_ij k_j) v_j  +  fade_i * (reads_i^T S)        S' = decay * S + \sum_j keys_j values_j^T

Decays are multiplied, never divided, and exponents never subtracted: a running sum loses its digits behind a strong reset, and
makes NaN behind an infinite one. A product over many tokens is made from two halves: what the second half's rows see of the first
is *what they see of their own beginning* times *what is left of the first half's rows at its end*. So blocks of two tokens are made
of tokens, blocks of four of those, and so on, with log2(c) batched products of matrices ("secondary chunking", Yang et al., 2023,
arXiv:2312.06635, carried to the end).

Shapes: q, k [z, c, k]; v [z, r, c, v]; c tokens, a power of two; z counts chunks, rows and groups of r heads, as one axis: the sums
of a gradient over seven axes crash jaxlib 0.10.2 on CPUs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Inside(NamedTuple):
    """See above; `fade` and `decay` are None for no decay."""

    o: Array  # [z, r, c, v]
    reads: Array  # [z, c, k]
    keys: Array  # [z, c, k]
    values: Array  # [z, r, c, v]
    fade: Array | None  # [z, r, c, 1 or v]
    decay: Array | None  # [z, r, 1 or k, 1 or v]


def by_head(dot, q, k, v, g, exclusive) -> Inside:
    """At most one decay per head, g None or [z, r, c]: a mask on one product of matrices per chunk."""
    scores = dot("zik,zjk->zij", q, k)[:, None]
    if g is None:
        mask = np.tri(q.shape[1], k=-1 if exclusive else 0, dtype=scores.dtype)[None, None]
        return Inside(_weigh(dot, scores * mask, v), q, k, v, None, None)
    flat = _mask(jnp.exp(g).reshape(-1, g.shape[-1]), exclusive)
    mask, seen, left, total = (x.reshape(*g.shape[:2], *x.shape[1:]) for x in flat)
    return Inside(_weigh(dot, scores * mask, v), q, k, left * v, seen, total)


def _weigh(dot, scores, v):
    return dot("zrij,zrjv->zriv", jnp.broadcast_to(scores, (*v.shape[:-1], scores.shape[-1])), v)


def _mask(a, exclusive):
    """From decays [z, c]: A [z, c, c], 0 for pairs that do not meet; fade, what is left at the end, and both of the chunk."""
    total = a[..., None, None]  # [z, blocks, 1, 1], to begin with of single tokens
    one = jnp.ones_like(total)
    mask, seen, left = (0 * one, one, one) if exclusive else (one, total, one)
    while total.shape[-3] > 1:
        (mask_1, mask_2), (seen_1, seen_2), (left_1, left_2), (total_1, total_2) = map(_halves, (mask, seen, left, total))
        upper = jnp.concatenate([mask_1, jnp.zeros_like(mask_1)], axis=-1)
        lower = jnp.concatenate([seen_2 * jnp.swapaxes(left_1, -1, -2), mask_2], axis=-1)
        mask, seen = _join(upper, lower), _join(seen_1, total_1 * seen_2)
        left, total = _join(left_1 * total_2, left_2), total_1 * total_2
    return tuple(x[:, 0] for x in (mask, seen, left, total))


def by_channel(dot, q, k, v, key_decay, value_decay, exclusive) -> Inside:
    """Decays per channel of the keys [z, c, k], of the values [z, c, v], or of both; heads share nothing, and v is [z, c, v]."""
    tokens = lambda x: x[..., None, :]  # [z, blocks, rows, width], to begin with single tokens
    q, keys, values = tokens(q), tokens(k), tokens(v)
    total, value_total = (None if g is None else tokens(jnp.exp(g)) for g in (key_decay, value_decay))
    reads = q if exclusive else _times(total, q)
    own = None if exclusive else dot("zBik,zBjk->zBij", q, keys)
    scores = []  # of every second half of a block with its first, for blocks of 2, 4, ... tokens
    while keys.shape[-3] > 1:
        (reads_1, reads_2), (keys_1, keys_2), (total_1, total_2) = map(_halves, (reads, keys, total))
        scores.append(dot("zBik,zBjk->zBij", reads_2, keys_1))
        reads, keys = _join(reads_1, _times(total_1, reads_2)), _join(_times(total_2, keys_1), keys_2)
        total = _times(total_1, total_2)
    if value_decay is None:
        o, fade, values = dot("zij,zjv->ziv", _triangle(own, scores, v), v), None, v
    else:
        o, fade, values, value_total = (x[:, 0] for x in _fading(dot, own, scores, values, value_total))
    decay = _times(None if total is None else jnp.swapaxes(total[:, 0], -1, -2), value_total)
    heads = lambda x: None if x is None else x[:, None]
    return Inside(heads(o), reads[:, 0], keys[:, 0], heads(values), heads(fade), heads(decay))


def _triangle(own, scores, v):
    """All scores in one matrix [z, c, c]."""
    whole = jnp.zeros((*v.shape[:2], 1, 1), v.dtype) if own is None else own
    for score in scores:
        upper, lower = _halves(whole)
        rows = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1), jnp.concatenate([score, lower], axis=-1)
        whole = jnp.concatenate(rows, axis=-2)
    return whole[:, 0]


def _fading(dot, own, scores, values, total):
    """o, fade, values [z, 1, c, v] and decay [z, 1, 1, v] of the chunk, for values that decay."""
    exclusive = own is None
    o = jnp.zeros_like(values) if exclusive else dot("zBij,zBjv->zBiv", own, values)
    fade = jnp.ones_like(total) if exclusive else total
    for score in scores:
        (o_1, o_2), (fade_1, fade_2), (values_1, values_2), (total_1, total_2) = map(_halves, (o, fade, values, total))
        o = _join(o_1, o_2 + fade_2 * dot("zBij,zBjv->zBiv", score, values_1))
        fade, values = _join(fade_1, _times(total_1, fade_2)), _join(_times(total_2, values_1), values_2)
        total = total_1 * total_2
    return o, fade, values, total


def _times(x, y):
    """x * y, where None is 1."""
    if x is None or y is None:
        return y if x is None else x
    return spread(x, y.shape) * y


def spread(x, shape):
    """x with its one row, or column, repeated to that shape; its gradient by products with ones: XLA on CPUs is slow at sums."""
    for axis in (-2, -1):
        if x.shape[axis] == 1 < shape[axis]:
            x = _repeat(x, axis, shape[axis])
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _repeat(x, axis, size):
    return jnp.broadcast_to(x, (*x.shape[:-2], size, x.shape[-1]) if axis == -2 else (*x.shape[:-1], size))


def _repeat_forward(x, axis, size):
    return _repeat(x, axis, size), None


def _repeat_backward(axis, size, _, d):
    ones, spec = jnp.ones((size, 1), d.dtype), "...rw,ri->...iw" if axis == -2 else "...wr,ri->...wi"
    return (jnp.einsum(spec, d, ones, precision="highest"),)


_repeat.defvjp(_repeat_forward, _repeat_backward)


def _halves(x):
    """Blocks [z, 2 n, rows, width] -> the first of every two, and the second."""
    return (None, None) if x is None else (x[:, 0::2], x[:, 1::2])


def _join(first, second):
    """Blocks of rows -> half as many blocks of twice as many rows."""
    return None if first is None else jnp.concatenate([first, second], axis=-2)
