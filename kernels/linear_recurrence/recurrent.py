"""Recurrent form: one token at a time, in place. Fastest on CPUs (benchmarks/results/kernels_cpu.json).

Forward: a `fori_loop` over tokens; a step reads token t of axis 1 of [b, t, d] and writes token t of a preallocated output, so
nothing is transposed, and h is the only history. Backward: one loop from the last token to the first for all gradients; that of a
decay which all tokens share is a sum in the loop's carry. Cost: O(b t d) time in t steps; no memory beyond the results.

Complex numbers stay complex. On a CPU two real planes ran between twice and half as fast, by shape, in the loop alone, and equally
fast in a whole S4D layer.
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma
from seqzoo.kernels.linear_recurrence.decay import Decay


def forward(decay: Decay, b: Array, initial: Array) -> tuple[Array, Array]:
    """Computes (h in b's dtype, last state) from b [b, t, d] of any float dtype and initial [b, d] in the dtype of states."""

    def step(t, carry):
        last, h = carry
        last = decay.times(t, last) + get_step(b, t)
        return last, set_step(h, last, t)

    last, h = lax.fori_loop(0, b.shape[1], step, (initial, zeros_like_vma(b)))
    return h, last


def backward(decay: Decay, h: Array, initial: Array, dh: Array, dlast: Array) -> tuple[Array, Array, Array]:
    """Computes the gradients of (decay.values, b, initial).

    r_t = dh_t + a_{t+1} r_{t+1} is the gradient of h_t; db_t = r_t and da_t = r_t h_{t-1}.
    """

    def step(i, carry):
        r, da, db = carry  # r: a_{t+1} r_{t+1}
        t = h.shape[1] - 1 - i
        r = r + get_step(dh, t)
        before = jnp.where(t == 0, initial, get_step(h, jnp.maximum(t - 1, 0)).astype(initial.dtype))
        return decay.times(t, r), decay.add_gradient(da, r * before, t), set_step(db, r, t)

    dinitial, da, db = lax.fori_loop(0, h.shape[1], step, (dlast, decay.zero_gradient(h, dlast.dtype), zeros_like_vma(h)))
    return decay.finish_gradient(da), db, dinitial


def state_transition(decay: Decay, b: Array, dtype) -> tuple[Array, Array]:
    """Transition (product, added), both [b, d], of any state over all tokens: last state = product * initial + added."""

    def step(t, carry):
        product, h = carry
        return decay.times(t, product), decay.times(t, h) + get_step(b, t)

    return lax.fori_loop(0, b.shape[1], step, _identity(b, dtype))


def gradient_transition(decay: Decay, dh: Array, dtype) -> tuple[Array, Array]:
    """The same of gradients: that of the initial state = product * that of the last state + added."""

    def step(i, carry):
        product, r = carry
        t = dh.shape[1] - 1 - i
        return decay.times(t, product), decay.times(t, r + get_step(dh, t))

    return lax.fori_loop(0, dh.shape[1], step, _identity(dh, dtype))


def _identity(like: Array, dtype) -> tuple[Array, Array]:
    """The transition that changes nothing, of [b, d]."""
    added = zeros_like_vma(like, (like.shape[0], *like.shape[2:]), dtype)
    return added + 1, added
