"""Short causal depthwise convolution, the local mixing before most recurrences.

`short_convolution` here: signature, checks, sharding -> one of the implementations
`reference.py`: the definition, token by token     `xla.py`: multiply-adds over shifted views     `tail.py`: its state over a shard
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import implementations, segments, sharding
from seqzoo.kernels.common.vma import match_vma
from seqzoo.kernels.convolution import reference, xla
from seqzoo.kernels.convolution.tail import apply_transition, tail_transition

__all__ = ["short_convolution"]


def short_convolution(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | Sequence[str] | None = None,
) -> tuple[Array, Array]:
    """Computes y_t = bias + sum_j weight[width - 1 - j] * x_{t-j}, elementwise over channels, j = 0 ... width - 1.

    The last row of `weight` multiplies the current token: torch's depthwise conv1d weight [d, 1, width] is `weight.T[:, None]`.
    x_{t-j} is the j-th real (non-padding) token before t in the same document, across padding and calls; zero where there is none.

    Args:
      x: [b, t, d] float, t >= 1.
      weight: [width, d] float, width >= 1.
      bias: [d] float; None is zero.
      initial_state: [b, width - 1, d], the tail of the previous call; None is zeros.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token, 0 is padding; None: all tokens continue the document of `initial_state`.
      implementation: None, a name, or several names of which the first is used:
        "reference": `lax.scan` over tokens; the definition.
        "xla": shifted multiply-adds; gathers where ids are given. The default.

    Returns:
      (y, tail): y [b, t, d] in x's dtype, exactly 0 at padding; tail [b, width - 1, d] in initial_state's dtype (x's where that is
      None), the last real tokens of the current document, latest last, zeros before its first.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown implementation.

    Sums are taken in promote(float32, inputs). Cost: O(b t d width) time, no memory beyond the output (with ids also a copy of x
    and of y); state (width - 1) d elements per row. The op is linear in x and in weight, so its gradients are JAX's own.
    """
    tail = _check(x, weight, bias, initial_state, initial_segment, segment_ids)
    convolve = implementations.choose("short_convolution", implementation, IMPLEMENTATIONS, "xla")
    shards = sharding.plan("short_convolution", b=x.shape[0], t=1 if convolve is _reference else x.shape[1], h=x.shape[2:])
    floats = [x, weight, tail] if bias is None else [x, weight, tail, bias]
    dtype = implementations.state_dtype(*floats)
    bias = jnp.zeros(weight.shape[1:], dtype) if bias is None else bias
    real = None if segment_ids is None else segment_ids != 0
    start = None if segment_ids is None else segments.starts(segment_ids, initial_segment)

    def run(x, weight, bias, tail, real, start):
        if shards.time is not None and weight.shape[0] > 1:
            transition = tail_transition(x, real, start, weight.shape[0] - 1)
            tail = sharding.prefix_over_shards(apply_transition, transition, tail, shards.time)
        y, last = convolve(x, weight, bias, tail, real, start)
        return y, sharding.broadcast_from_shard(-1, last, shards.time)

    masked = segments.mask_padding(x, segment_ids).astype(dtype)
    arrays = (masked, weight.astype(dtype), bias.astype(dtype), tail.astype(dtype), real, start)
    y, last = sharding.run_sharded(shards, run, arrays, ("b t h", ". h", "h", "b . h", "b t", "b t"), ("b t h", "b . h"))
    return segments.mask_padding(y, segment_ids).astype(x.dtype), last.astype(tail.dtype)


def _xla(x, weight, bias, tail, real, start):
    return xla.shifted(x, weight, bias, tail) if real is None else xla.packed(x, weight, bias, tail, real, start)


def _reference(x, weight, bias, tail, real, start):
    real = jnp.ones(x.shape[:2], bool) if real is None else real
    start = jnp.zeros(x.shape[:2], bool) if start is None else start
    return reference.scan(*match_vma((x, weight, bias, tail, real, start)))


IMPLEMENTATIONS = {"xla": _xla, "reference": _reference}


def _check(x, weight, bias, initial_state, initial_segment, segment_ids) -> Array:
    """Raises ValueError unless all shapes and dtypes fit; returns the initial tail."""
    if x.ndim != 3 or x.shape[1] < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}{list(x.shape)}, wanted float [b, t, d] with t >= 1")
    batch, length, width = x.shape
    if weight.ndim != 2 or weight.shape[0] < 1 or weight.shape[1] != width:
        raise ValueError(
            f"weight has shape {weight.shape}, wanted (width, {width}) with width >= 1, latest tap last (torch's is its transpose)"
        )
    if bias is not None and bias.shape != (width,):
        raise ValueError(f"bias has shape {bias.shape}, wanted ({width},)")
    wanted = (batch, weight.shape[0] - 1, width)
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}: the {wanted[1]} tokens before the first")
    segments.check(segment_ids, initial_segment, batch, length)
    return jnp.zeros(wanted, x.dtype) if initial_state is None else initial_state
