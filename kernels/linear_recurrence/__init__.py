"""Elementwise linear recurrence: the memory of RG-LRU, HGRN, minGRU, QRNN, SRU, LRU and S5."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import dispatch, documents, pieces, placement
from seqzoo.kernels.common.varying import align
from seqzoo.kernels.linear_recurrence import chunked, loop, reference

__all__ = ["linear_recurrence"]


def linear_recurrence(
    a: Array,
    b: Array,
    *,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Array, Array]:
    """h_t = a_t * h_{t-1} + b_t, elementwise.

    Args:
      a: [b, t, ...] decay, any finite real (or complex) value; exactly 0 forgets everything.
      b: [b, t, ...] input, same shape and dtype; t >= 1.
      initial_state: [b, ...] h before the first token; None is zero.
      initial_segment: [b] int32, the last non-zero id of the calls before; None or 0: the initial state belongs to the first
        document.
      segment_ids: [b, t] int32, ids of packed documents, which forget what came before them; 0 is padding, which leaves h as it
        is. None: all tokens continue the initial state.
      reverse: run from the last token to the first, h_t = a_t * h_{t+1} + b_t. Then a document starts at its last token, the
        initial state and segment are those behind the last token, and the state returned is that at the first token.
      implementation: None (the best for the platform), "loop" (in place, token by token; best on CPU), "chunked" (all chunks at
        once, 2.8 sqrt(t) steps; best elsewhere) or "reference" (lax.scan).

    Returns:
      (h, last): h [b, t, ...] in b's dtype, exactly 0 at padding; last [b, ...] in promote(float32, b.dtype), the state to
      carry on.

    Raises:
      ValueError: shapes or dtypes that differ (both named), or an unknown implementation.

    Backward: a reverse recurrence; residuals are a and h. Time and memory O(b t d). "chunked" needs the product of |a| over
    sqrt(t / 2) tokens not to overflow, and a mesh that cuts time that over a piece. For the uses of it see Martin & Cundy, 2018,
    arXiv:1709.04057.
    """
    _check(a, b, initial_state, initial_segment, segment_ids)
    by_platform = "loop" if dispatch.on_cpu() else "chunked"
    form = dispatch.choose("linear_recurrence", implementation, _FORMS, by_platform)
    layout = placement.plan("linear_recurrence", b=b.shape[0], t=1 if form is _reference else b.shape[1], h=b.shape[2:3])

    dtype = dispatch.state_dtype(b)
    initial = jnp.zeros(b.shape[:1] + b.shape[2:], dtype) if initial_state is None else initial_state.astype(dtype)
    if segment_ids is not None:
        turn = partial(jnp.flip, axis=1) if reverse else lambda ids: ids
        start = turn(documents.starts(turn(segment_ids), initial_segment))
        over = lambda where: where.reshape(where.shape + (1,) * (b.ndim - 2))
        a = jnp.where(over(segment_ids != 0), jnp.where(over(start), 0, a), 1)
        b = documents.zero_padding(b, segment_ids)
    inner = " ".join("h" if i == 0 else "." for i in range(b.ndim - 2))
    cut = (f"b t {inner}", f"b t {inner}", f"b {inner}")
    h, last = pieces.run(layout, partial(_piece, form, layout.time, reverse), (a, b, initial), cut, cut[1:])
    return documents.zero_padding(h, segment_ids), last


def _piece(form, time, reverse, a, b, initial):
    """h and the last state of one piece along the mesh axis `time`, or of the whole (None)."""
    shape = b.shape
    if reverse:
        a, b = jnp.flip(a, axis=1), jnp.flip(b, axis=1)
    a, b, initial = a.reshape(*shape[:2], -1), b.reshape(*shape[:2], -1), initial.reshape(shape[0], -1)
    h, last = form(_Time(time, reverse), *align((a, b, initial), over=pieces.over(time)))
    h, last = h.reshape(shape), last.reshape(shape[:1] + shape[2:])
    last = pieces.of_piece(0 if reverse else -1, last, time)
    return jnp.flip(h, axis=1) if reverse else h, last


class _Time(NamedTuple):
    axis: str | None  # the mesh axis that cuts time, if any
    reverse: bool  # its pieces follow each other from the last to the first


def _reference(_, a, b, initial):
    h, last = reference.scan(a.astype(initial.dtype), b.astype(initial.dtype), initial)
    return h.astype(b.dtype), last


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(form, time, a, b, initial):
    return _forward(form, time, a, b, initial)[0]


def _forward(form, time, a, b, initial):
    if time.axis is not None:
        initial = pieces.fold(_compose, loop.summary(a, b, initial.dtype), initial, time.axis, time.reverse)
    h, last = form.forward(a, b, initial)
    return (h, last), (a, h, initial)


def _backward(form, time, residuals, cotangents):
    a, h, initial = residuals
    dh, dlast = cotangents
    if time.axis is None:
        return align(form.backward(a, h, initial, dh, dlast))
    product, added = loop.summary_back(a, dh, dlast.dtype)
    behind = pieces.fold(_compose, (product, product * dlast + added), jnp.zeros_like(dlast), time.axis, not time.reverse)
    da, db, dinitial = form.backward(a, h, initial, dh, dlast + behind)
    return align((da, db, pieces.only(-1 if time.reverse else 0, dinitial, time.axis)))


def _compose(h, summary):
    product, added = summary
    return product * h + added


_recurrence.defvjp(_forward, _backward)
_FORMS = {"loop": partial(_recurrence, loop), "chunked": partial(_recurrence, chunked), "reference": _reference}


def _check(a, b, initial_state, initial_segment, segment_ids) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"a is {a.dtype}{list(a.shape)} and b is {b.dtype}{list(b.shape)}, wanted the same shape and dtype")
    if b.ndim < 2 or b.shape[1] < 1 or not jnp.issubdtype(b.dtype, jnp.inexact):
        raise ValueError(f"b is {b.dtype}{list(b.shape)}, wanted float [b, t, ...] with t >= 1")
    wanted = b.shape[:1] + b.shape[2:]
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
    documents.check(segment_ids, initial_segment, *b.shape[:2])
