"""Exponential gates: weights exp(x) of any size, kept in range by dividing by the largest so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common.running_max import running_max


class ExponentialGates(NamedTuple):
    """Gates of a state that is stored divided by exp(m_t); all [b, t, h]."""

    log_decay: Array  # m_{t-1} + g_t - m_t <= 0: of the stored state
    log_weight: Array  # x_t - m_t <= 0: of the new token
    before: Array  # m_{t-1}, a constant; -inf where a document starts and at padding
    maximum: Array  # m_t, with its gradient


def exponential_gates(
    x: Array,
    log_decay: Array | None = None,
    *,
    maximum: Array | None = None,
    segment: Array | None = None,
    segment_ids: Array | None = None,
) -> ExponentialGates:
    """Gates of S_t = exp(g_t) S_{t-1} + exp(x_t) k_t v_t^T, for a state that is stored as S_t / exp(m_t).

        m_t = max(m_{t-1} + g_t, x_t)        S_t / e^{m_t} = e^{log_decay_t} S_{t-1} / e^{m_{t-1}} + e^{log_weight_t} k_t v_t^T

    Gradients of the gates treat m as a constant, which is exact for every output in which m cancels. It does not in a state that is
    a function's argument or result: see `scaled`. The maximum is that of online softmax (Milakov & Gimelshein 2018,
    arXiv:1805.02867), with a decay.

    Args:
      x: [b, t, h] float, logarithms of weights.
      log_decay: g <= 0, [b, t, h], -inf included; None is 0.
      maximum: [b, h], m before the first token; None is -inf, an empty state.
      segment, segment_ids: as for an op. Gates at padding are finite; nothing may be written there.
    """
    before, after = running_max(x, log_decay=log_decay, initial_state=maximum, initial_segment=segment, segment_ids=segment_ids)
    before = jax.lax.stop_gradient(before)
    return ExponentialGates(*subtract_maximum(before if log_decay is None else before + log_decay, x), before, after)


def scaled(stored: Array | float, maximum: Array) -> Array:
    """The numbers of `stored`, with the derivatives of stored * exp(maximum), where maximum is finite.

    What a state (stored, m) stands for is stored * exp(m). Gates treat every m as a constant, so a mixer passes its initial state
    through scaled(stored, m) and the final one through scaled(stored, -m): then gradients are those of the state as two arrays.
    """
    maximum = jnp.where(jnp.isfinite(maximum), maximum, 0)
    return stored * jnp.exp(maximum - jax.lax.stop_gradient(maximum))


@jax.custom_jvp
def subtract_maximum(a: Array, b: Array) -> tuple[Array, Array]:
    """(a - max(a, b), b - max(a, b)), the maximum taken as a constant. One of them is exactly 0, also where a or b is -inf.

    Both come from the one difference a - b and not from a rounded maximum: a state to which nothing is written decays by exactly
    its decay, without a rounding error per token.
    """
    difference = jnp.where(b == -jnp.inf, jnp.inf, a - b)
    return jnp.minimum(difference, 0), jnp.minimum(-difference, 0)


@subtract_maximum.defjvp
def _subtract_maximum_jvp(primals, tangents):
    return subtract_maximum(*primals), tuple(tangents)


def nonzero_divisor(x: Array) -> Array:
    """x, with 1 for 0. A sum of weights is 0 only at padding, where a quotient means nothing but must be finite."""
    return jnp.where(x == 0, jnp.ones_like(x), x)
