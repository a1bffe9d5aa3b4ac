"""Elementwise linear recurrence: the memory of RG-LRU, HGRN, minGRU, QRNN, SRU, LRU and S5."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import dispatch, documents
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
    sqrt(t / 2) tokens not to overflow. For the uses of it see Martin & Cundy, 2018, arXiv:1709.04057.
    """
    _check(a, b, initial_state, initial_segment, segment_ids)
    table = {"loop": partial(_recurrence, "loop"), "chunked": partial(_recurrence, "chunked"), "reference": _reference}
    form = dispatch.choose("linear_recurrence", implementation, table, "loop" if dispatch.on_cpu() else "chunked")
    if reverse:
        a, b = jnp.flip(a, axis=1), jnp.flip(b, axis=1)
        segment_ids = None if segment_ids is None else jnp.flip(segment_ids, axis=1)

    shape, dtype = b.shape, dispatch.state_dtype(b)
    initial = jnp.zeros(shape[:1] + shape[2:], dtype) if initial_state is None else initial_state.astype(dtype)
    a, b, initial = a.reshape(*shape[:2], -1), b.reshape(*shape[:2], -1), initial.reshape(shape[0], -1)
    if segment_ids is not None:
        real = (segment_ids != 0)[:, :, None]
        start = documents.starts(segment_ids, initial_segment)[:, :, None]
        a, b = jnp.where(real, jnp.where(start, 0, a), 1), jnp.where(real, b, 0)
    h, last = form(a, b, initial)
    h, last = documents.zero_padding(h, segment_ids).reshape(shape), last.reshape(shape[:1] + shape[2:])
    return jnp.flip(h, axis=1) if reverse else h, last


def _reference(a, b, initial):
    h, last = reference.scan(a.astype(initial.dtype), b.astype(initial.dtype), initial)
    return h.astype(b.dtype), last


_FORMS = {"loop": loop, "chunked": chunked}


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(form, a, b, initial):
    return _FORMS[form].forward(a, b, initial)


def _forward(form, a, b, initial):
    h, last = _FORMS[form].forward(a, b, initial)
    return (h, last), (a, h, initial)


def _backward(form, residuals, cotangents):
    return _FORMS[form].backward(*residuals, *cotangents)


_recurrence.defvjp(_forward, _backward)


def _check(a, b, initial_state, initial_segment, segment_ids) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"a is {a.dtype}{list(a.shape)} and b is {b.dtype}{list(b.shape)}, wanted the same shape and dtype")
    if b.ndim < 2 or b.shape[1] < 1 or not jnp.issubdtype(b.dtype, jnp.inexact):
        raise ValueError(f"b is {b.dtype}{list(b.shape)}, wanted float [b, t, ...] with t >= 1")
    wanted = b.shape[:1] + b.shape[2:]
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
    documents.check(segment_ids, initial_segment, *b.shape[:2])
