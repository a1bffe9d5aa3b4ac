"""Elementwise linear recurrence: the memory of RG-LRU, HGRN, minGRU, qLSTM, LRU, S4D, S5 and MEGA."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import implementations, segments, sharding
from seqzoo.kernels.common.vma import match_vma
from seqzoo.kernels.linear_recurrence import chunkwise, recurrent, reference
from seqzoo.kernels.linear_recurrence.decay import Decay, rules

__all__ = ["linear_recurrence"]


def linear_recurrence(
    a: Array,
    b: Array,
    *,
    log: bool = False,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    reverse: bool = False,
    implementation: str | Sequence[str] | None = None,
) -> tuple[Array, Array]:
    """h_t = a_t * h_{t-1} + b_t, elementwise.

    Args:
      a: [b, t, ...] decay, any finite real (or complex) value; exactly 0 forgets everything. Its first axis may be 1, one decay for
        all rows, and its second, one for all tokens: that is never written out, and its gradient is summed on the way.
      b: [b, t, ...] input, same shape and dtype; t >= 1.
      log: whether a is given as its logarithm, real and <= 0; -inf forgets everything, and its gradient is 0. Then bfloat16 can
        say decays nearer to 1 than 1 - 2^-9: they are made from it in float32, token by token.
      initial_state: [b, ...] h before the first token; None is zero.
      initial_segment: [b] int32, the last non-zero id of the calls before; None or 0: the initial state belongs to the first
        document.
      segment_ids: [b, t] int32, ids of packed documents, which forget what came before them; 0 is padding, which leaves h as it
        is. None: all tokens continue the initial state.
      reverse: run from the last token to the first, h_t = a_t * h_{t+1} + b_t. Then a document starts at its last token, the
        initial state and segment are those behind the last token, and the state returned is that at the first token.
      implementation: None, a name, or several names of which the first is used:
        "reference": `lax.scan`; the definition.
        "recurrent": token by token, in place.
        "chunkwise": all chunks at once, 2.8 sqrt(t) steps.
        None takes "recurrent" on CPUs, else "chunkwise".

    Returns:
      (h, last): h [b, t, ...] in b's dtype, exactly 0 at padding; last [b, ...] in promote(float32, b.dtype), the state to
      carry on.

    Raises:
      ValueError: shapes or dtypes that differ (both named), complex logarithms, or an unknown implementation.

    Backward: a reverse recurrence; residuals are a and h. Time and memory O(b t d); documents add one byte per token. A decay with
    a first axis of 1 alone, the same for all rows but not for all tokens, is written out. "chunkwise" needs the product of |a| over
    sqrt(t / 2) tokens not to overflow, and a mesh that cuts time that over a piece. For the uses of it see Martin & Cundy, 2018,
    arXiv:1709.04057.
    """
    _check(a, b, log, initial_state, initial_segment, segment_ids)
    # On CPUs "recurrent" was the faster at every recorded shape (benchmarks/results/kernels_cpu.json). Not measured on GPUs: there
    # the choice is of few steps, as every step is a kernel launch.
    default = "recurrent" if implementations.on_cpu() else "chunkwise"
    form = implementations.choose("linear_recurrence", implementation, _FORMS, default)
    shards = sharding.plan("linear_recurrence", b=b.shape[0], t=1 if form is _reference else b.shape[1], h=b.shape[2:3])

    dtype = implementations.state_dtype(b)
    initial = jnp.zeros(b.shape[:1] + b.shape[2:], dtype) if initial_state is None else initial_state.astype(dtype)
    if a.shape[1] > 1:
        a = jnp.broadcast_to(a, b.shape)
    rule = None if segment_ids is None else rules(segment_ids, initial_segment, reverse)
    inner = " ".join("h" if i == 0 else "." for i in range(b.ndim - 2))
    tokens, state = f"b t {inner}", f"b {inner}"
    piece = partial(_piece, form, _Time(shards.time, reverse), log)
    arrays = (a, rule, segments.mask_padding(b, segment_ids), initial)
    h, last = sharding.run_sharded(shards, piece, arrays, (tokens, "b t", tokens, state), (tokens, state))
    return segments.mask_padding(h, segment_ids), last


class _Time(NamedTuple):
    axis: str | None  # the mesh axis that cuts time, if any
    reverse: bool  # its pieces follow each other from the last to the first


def _piece(form, time, log, a, rule, b, initial):
    """h and the last state of one piece along the mesh axis `time.axis`, or of the whole (None)."""
    shape = b.shape
    if time.reverse:
        a, rule, b = jax.tree.map(partial(jnp.flip, axis=1), (a, rule, b))
    a, b, initial = a.reshape(*a.shape[:2], -1), b.reshape(*shape[:2], -1), initial.reshape(shape[0], -1)
    h, last = form(time, *match_vma((Decay(a, rule, log), b, initial), over=sharding.axis_tuple(time.axis)))
    h, last = h.reshape(shape), last.reshape(shape[:1] + shape[2:])
    last = sharding.broadcast_from_shard(0 if time.reverse else -1, last, time.axis)
    return jnp.flip(h, axis=1) if time.reverse else h, last


def _reference(_, decay, b, initial):
    a = jnp.broadcast_to(decay.written_out(initial.dtype), b.shape)
    h, last = reference.scan(a, b.astype(initial.dtype), initial)
    return h.astype(b.dtype), last


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(form, time, decay, b, initial):
    return _forward(form, time, decay, b, initial)[0]


def _forward(form, time, decay, b, initial):
    if time.axis is not None:
        summary = recurrent.summary(decay, b, initial.dtype)
        initial = sharding.prefix_over_shards(_compose, summary, initial, time.axis, time.reverse)
    h, last = form.forward(decay, b, initial)
    return (h, last), (decay, h, initial)


def _backward(form, time, residuals, cotangents):
    decay, h, initial = residuals
    dh, dlast = cotangents
    if time.axis is not None:
        product, added = recurrent.summary_back(decay, dh, dlast.dtype)
        behind = sharding.prefix_over_shards(
            _compose, (product, product * dlast + added), jnp.zeros_like(dlast), time.axis, not time.reverse
        )
        dlast = dlast + behind
    da, db, dinitial = form.backward(decay, h, initial, dh, dlast)
    return match_vma(
        (replace(decay, values=da, rule=None), db, sharding.mask_to_shard(-1 if time.reverse else 0, dinitial, time.axis))
    )


def _compose(h, summary):
    product, added = summary
    return product * h + added


_recurrence.defvjp(_forward, _backward)
_FORMS = {"recurrent": partial(_recurrence, recurrent), "chunkwise": partial(_recurrence, chunkwise), "reference": _reference}


def _check(a, b, log, initial_state, initial_segment, segment_ids) -> None:
    fits = a.ndim == b.ndim and a.shape[2:] == b.shape[2:] and all(n in (1, m) for n, m in zip(a.shape, b.shape, strict=True))
    if not fits or a.dtype != b.dtype:
        raise ValueError(
            f"a is {a.dtype}{list(a.shape)} and b is {b.dtype}{list(b.shape)}, wanted the same shape and dtype "
            "(a's first two axes may be 1)"
        )
    if log and jnp.iscomplexobj(a):
        raise ValueError(f"log=True with a of {a.dtype}: wanted real logarithms, or log=False and complex decays")
    if b.ndim < 2 or b.shape[1] < 1 or not jnp.issubdtype(b.dtype, jnp.inexact):
        raise ValueError(f"b is {b.dtype}{list(b.shape)}, wanted float [b, t, ...] with t >= 1")
    wanted = b.shape[:1] + b.shape[2:]
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
    segments.check(segment_ids, initial_segment, *b.shape[:2])
