"""One token after the other, written in place: the fastest form on CPUs (benchmarks/results/kernels_cpu.json).

Inputs stay [b, t, d]; every step reads row t of axis 1 and writes row t of a preallocated output, so nothing is transposed and no
history is kept beyond the output. The backward loop makes both gradients in one pass; that of a decay which all tokens share is a
sum in the loop's carry. Complex numbers stay complex: on a CPU two real planes ran between twice and half as fast in the loop
alone, by shape, and as fast in the whole of an S4D layer.
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma
from seqzoo.kernels.linear_recurrence.decay import Decay


def forward(decay: Decay, b: Array, initial: Array) -> tuple[Array, Array]:
    """b [b, t, d] of any float dtype, initial [b, d] in the dtype to accumulate in. Returns (h in b's dtype, h at the end)."""

    def step(t, carry):
        last, h = carry
        last = decay.at(t, last.dtype) * last + get_step(b, t)
        return last, set_step(h, last, t)

    last, h = lax.fori_loop(0, b.shape[1], step, (initial, zeros_like_vma(b)))
    return h, last


def backward(decay: Decay, h: Array, initial: Array, dh: Array, dlast: Array) -> tuple[Array, Array, Array]:
    """Gradients of (decay.values, b, initial).

    r_t = dh_t + a_{t+1} r_{t+1} is the gradient of h_t; db_t = r_t and da_t = r_t h_{t-1}.
    """

    def step(i, carry):
        r, da, db = carry  # r: a_{t+1} r_{t+1}, what reaches h_t from behind
        t = h.shape[1] - 1 - i
        r = r + get_step(dh, t)
        before = jnp.where(t == 0, initial, get_step(h, jnp.maximum(t - 1, 0)).astype(initial.dtype))
        return decay.at(t, r.dtype) * r, decay.collect(da, r * before, t), set_step(db, r, t)

    dinitial, da, db = lax.fori_loop(0, h.shape[1], step, (dlast, decay.gradient(h, dlast.dtype), zeros_like_vma(h)))
    return decay.collected(da), db, dinitial


def summary(decay: Decay, b: Array, dtype) -> tuple[Array, Array]:
    """What a row does to any h: (product, added) [b, d] with h at the end = product * h before + added. No history is kept."""

    def step(t, carry):
        product, h = carry
        a_t = decay.at(t, dtype)
        return a_t * product, a_t * h + get_step(b, t)

    return lax.fori_loop(0, b.shape[1], step, _unit(b, dtype))


def summary_back(decay: Decay, dh: Array, dtype) -> tuple[Array, Array]:
    """The same of gradients: (product, added) with that of h before = product * that of h at the end + added."""

    def step(i, carry):
        product, r = carry
        t = dh.shape[1] - 1 - i
        a_t = decay.at(t, dtype)
        return a_t * product, a_t * (r + get_step(dh, t))

    return lax.fori_loop(0, dh.shape[1], step, _unit(dh, dtype))


def _unit(like: Array, dtype) -> tuple[Array, Array]:
    added = zeros_like_vma(like, (like.shape[0], *like.shape[2:]), dtype)
    return added + 1, added
