"""Two levels, for devices on which every step of a loop is a kernel launch: all chunks advance together.

A row of n chunks of c tokens is treated as n rows. Each chunk is first run from zero for its summary (the product of its decays,
its final state); the n summaries are composed one after the other, which gives every chunk its true initial state; then all chunks
run again from there. That makes 2 c + n steps instead of t, with c near sqrt(t / 2), and reads a and b twice. Every h is still the
result of the plain recurrence: no division, no logarithm. Only the product of |a| over a chunk must not overflow.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma
from seqzoo.kernels.linear_recurrence import recurrent
from seqzoo.kernels.linear_recurrence.decay import FOLLOW, KEEP, Decay


def forward(decay: Decay, b: Array, initial: Array) -> tuple[Array, Array]:
    """As `recurrent.forward`."""
    chunk = chunk_size(b.shape[1])
    decays, b_rows = fold_decay(decay, chunk, b.shape), fold(b, chunk)
    product, h = recurrent.summary(decays, b_rows, initial.dtype)
    h, last = recurrent.forward(decays, b_rows, compose(product, h, initial))
    return unfold(h, b.shape), last.reshape(b.shape[0], -1, b.shape[2])[:, -1]


def backward(decay: Decay, h: Array, initial: Array, dh: Array, dlast: Array) -> tuple[Array, Array, Array]:
    """As `recurrent.backward`; the summaries are of what reaches a chunk's initial state from within it, composed from the end."""
    chunk = chunk_size(h.shape[1])
    decays, h_rows, dh_rows = fold_decay(decay, chunk, h.shape), fold(h, chunk), fold(dh, chunk)
    product, r = recurrent.summary_back(decays, dh_rows, dlast.dtype)
    behind = compose(product, r, dlast, reverse=True)
    ends = h[:, chunk - 1 : h.shape[1] - 1 : chunk].astype(initial.dtype)
    before = jnp.concatenate([initial[:, None], ends], axis=1).reshape(r.shape)
    da, db, dinitial = recurrent.backward(decays, h_rows, before, dh_rows, behind)
    if not decay.constant:
        da = unfold(da, h.shape)
    elif decay.values.shape[0] > 1:
        da = jnp.sum(unfold(da, r.reshape(h.shape[0], -1, h.shape[2]).shape), axis=1, keepdims=True)
    return da, unfold(db, h.shape), dinitial.reshape(h.shape[0], -1, h.shape[2])[:, 0]


def compose(product: Array, added: Array, initial: Array, reverse: bool = False) -> Array:
    """What every chunk starts from: s_0 = initial, s_{i+1} = product_i s_i + added_i (from the last chunk on, if reverse).

    product and added [b n, ...], chunk after chunk of each row; initial [b, ...]. Returns [b n, ...].
    """
    product, added = (x.reshape(initial.shape[0], -1, *initial.shape[1:]) for x in (product, added))
    count = product.shape[1]

    def step(i, carry):
        state, states = carry
        i = count - 1 - i if reverse else i
        return get_step(product, i) * state + get_step(added, i), set_step(states, state, i)

    _, states = lax.fori_loop(0, count, step, (initial, zeros_like_vma(added)))
    return states.reshape(-1, *initial.shape[1:])


def chunk_size(length: int) -> int:
    """Tokens per chunk: near sqrt(length / 2), where the number of steps 2 c + length / c is smallest."""
    return max(1, math.isqrt(length // 2))


def fold(x: Array, chunk: int, fill: float = 0) -> Array:
    """[b, t, ...] -> [b n, chunk, ...], every chunk a row; the last one is filled up."""
    missing = -x.shape[1] % chunk
    x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)), constant_values=fill) if missing else x
    return x.reshape(-1, chunk, *x.shape[2:])


def fold_decay(decay: Decay, chunk: int, shape: tuple[int, ...]) -> Decay:
    """The decays of chunks as rows; `shape` is that of b. What fills the last chunk is padding: it keeps the state."""
    rows, length, _ = shape
    rule = decay.rule
    if rule is None and length % chunk:
        rule = jnp.full((rows, length), FOLLOW, jnp.int8)
    values = decay.values
    if not decay.constant:
        values = fold(values, chunk)
    elif values.shape[0] > 1:
        values = jnp.repeat(values, -(-length // chunk), axis=0)
    return Decay(values, None if rule is None else fold(rule, chunk, fill=KEEP), decay.log)


def unfold(rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `fold`: [b n, chunk, d] -> shape [b, t, d], the fill cut off."""
    return rows.reshape(shape[0], -1, shape[2])[:, : shape[1]]
