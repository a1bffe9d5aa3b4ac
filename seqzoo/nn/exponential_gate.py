"""Exponential gates: weights exp(x) of any size, kept in range by dividing by the largest so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common.running_max import running_max


class ExponentialGates(NamedTuple):
    """The gates of a memory that is kept over exp(m_t); all [b, t, h]."""

    log_keep: Array  # m_{t-1} + g_t - m_t <= 0: what the memory decays by
    log_write: Array  # x_t - m_t <= 0: the weight of what is written
    before: Array  # m_{t-1}, -inf where a document starts and at padding
    maximum: Array  # m_t


def exponential_gates(
    x: Array,
    log_decay: Array | None = None,
    *,
    maximum: Array | None = None,
    segment: Array | None = None,
    segment_ids: Array | None = None,
) -> ExponentialGates:
    """The gates of S_t = exp(g_t) S_{t-1} + exp(x_t) k_t v_t^T, for a memory that holds S_t / exp(m_t).

        m_t = max(m_{t-1} + g_t, x_t)        S_t / e^{m_t} = e^{log_keep_t} S_{t-1} / e^{m_{t-1}} + e^{log_write_t} k_t v_t^T

    Gradients treat m as a constant, which is exact for whatever is read off the memory so that m cancels. As online softmax does it
    (Milakov & Gimelshein 2018, arXiv:1805.02867), with a decay.

    Args:
      x: [b, t, h] float, logarithms of weights.
      log_decay: g <= 0, [b, t, h], -inf included; None is 0.
      maximum: [b, h], m before the first token; None is -inf, an empty memory.
      segment, segment_ids: as for an op. What is given at padding is finite; nothing may be written there.
    """
    before, after = running_max(x, log_decay=log_decay, initial_state=maximum, initial_segment=segment, segment_ids=segment_ids)
    return ExponentialGates(*over_larger(before if log_decay is None else before + log_decay, x), before, after)


@jax.custom_jvp
def over_larger(a: Array, b: Array) -> tuple[Array, Array]:
    """(a - max(a, b), b - max(a, b)), the maximum taken as a constant. One of them is exactly 0, also where a or b is -inf.

    Off one difference and not off a rounded maximum: a memory that nothing is written to decays by exactly what it should, and
    not by a rounding error per token.
    """
    difference = jnp.where(b == -jnp.inf, jnp.inf, a - b)
    return jnp.minimum(difference, 0), jnp.minimum(-difference, 0)


@over_larger.defjvp
def _over_larger_jvp(primals, tangents):
    return over_larger(*primals), tuple(tangents)


def nonzero(x: Array) -> Array:
    """x, with 1 for 0: sums of weights to divide by, 0 at padding alone, where a quotient means nothing but must be finite."""
    return jnp.where(x == 0, jnp.ones_like(x), x)
