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

from typing import NamedTuple

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
    reads, fade = q, None if value_total is None else jnp.ones_like(value_total)
    o = jnp.zeros_like(values)
    if not exclusive:
        reads, fade = _times(total, q), value_total
        o = jnp.sum(q * keys, axis=-1, keepdims=True) * values
    while o.shape[-3] > 1:
        (reads_1, reads_2), (keys_1, keys_2), (total_1, total_2) = map(_halves, (reads, keys, total))
        (fade_1, fade_2), (values_1, values_2), (value_total_1, value_total_2) = map(_halves, (fade, values, value_total))
        o_1, o_2 = _halves(o)
        seen = dot("zBij,zBjv->zBiv", dot("zBik,zBjk->zBij", reads_2, keys_1), values_1)
        o = _join(o_1, o_2 + _times(fade_2, seen))
        reads, keys = _join(reads_1, _times(total_1, reads_2)), _join(_times(total_2, keys_1), keys_2)
        fade, values = _join(fade_1, _times(value_total_1, fade_2)), _join(_times(value_total_2, values_1), values_2)
        total, value_total = _times(total_1, total_2), _times(value_total_1, value_total_2)
    o, reads, keys, values, fade, total, value_total = (
        None if x is None else x[:, 0] for x in (o, reads, keys, values, fade, total, value_total)
    )
    decay = _times(None if total is None else jnp.swapaxes(total, -1, -2), value_total)
    heads = lambda x: None if x is None else x[:, None]
    return Inside(heads(o), reads, keys, heads(values), heads(fade), heads(decay))


def _times(x, y):
    """x * y, where None is 1."""
    if x is None or y is None:
        return y if x is None else x
    return x * y


def _halves(x):
    """Blocks [z, 2 n, rows, width] -> the first of every two, and the second."""
    return (None, None) if x is None else (x[:, 0::2], x[:, 1::2])


def _join(first, second):
    """Blocks of rows -> half as many blocks of twice as many rows."""
    return None if first is None else jnp.concatenate([first, second], axis=-2)
