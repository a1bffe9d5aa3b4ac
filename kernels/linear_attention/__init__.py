"""Linear attention: a matrix memory per head, with no decay or one per head, per token and head, or per token, head and channel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..common import dispatch, documents, pieces, placement
from ..common.varying import align
from . import chunked, loop, reference, summary

IMPLEMENTATIONS = {"reference": reference, "loop": loop, "chunked": chunked}


class _Settings(NamedTuple):
    backend: str
    scale: float
    chunk: int
    time: str | None  # the mesh axis that cuts time: this is one of its pieces

    def arguments(self):
        return {"scale": self.scale, "chunk": self.chunk}


def linear_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    log_decay: Array | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> tuple[Array, Array]:
    """A causal memory of outer products, read by a query:

        S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T        S: [k, v]
        o_t = scale * S_t^T q_t

    Args:
      q, k: [b, t, groups, k] float. `groups` divides h: head i uses group i // (h // groups) (Mamba-2 shares B and C so).
      v: [b, t, h, v] float.
      log_decay: g <= 0, -inf included, which forgets exactly: None (keep everything), [h], [b, t, h] or [b, t, h, k].
        Positive values are not looked for; they grow the state.
      scale: factor on the output, a Python number; None is k ** -0.5.
      initial_state: [b, h, k, v] S before the first token; None is zero.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token; 0 is padding, which neither writes nor decays. A document starts from S = 0.
      implementation: None, "reference" (`lax.scan`, differentiated by JAX: the definition), "loop" (token by token in place) or
        "chunked" (matrix products). None takes "chunked", except on a CPU for one token, a decay per channel or small states.
      chunk_size: tokens between kept states, and per matrix product in "chunked"; None: 64, on a CPU and in "loop" 32.
        Best a multiple of 16.
        "reference" has none and refuses it.

    Returns:
      (o, S): o [b, t, h, v] in v's dtype, exactly 0 at padding; S [b, h, k, v] after the last token, in promote(float32,
      the inputs' dtypes).

    Raises:
      ValueError: shapes, dtypes, `implementation` or `chunk_size` do not fit (found and wanted are named).

    Sums and states are in the state's dtype. Matrix products of float32 (or wider) inputs run at `Precision.HIGHEST`: the defaults
    of GPUs (TF32) and TPUs (bfloat16) are 1e-3 off. With narrower inputs they run at the default, which on no platform rounds more
    than bfloat16 does.
    Backward: own rule; residuals are the inputs and the states at the starts of chunks, O(t/c k v) and never O(t k v). The gradient
    of log_decay is a sum of products of decays with what they scale, never a difference of running sums.
    Cost: time O(t k v) ("loop") or O(t c (k + v) + t k v) ("chunked"); the state is h k v numbers per row, whatever t.
    Source: Katharopoulos et al., 2020, arXiv:2006.16236; chunks and channel decay: Yang et al., 2023, arXiv:2312.06635; head decay:
    Dao and Gu, 2024, arXiv:2405.21060.
    """
    _check(q, k, v, log_decay, initial_state)
    batch, length, _, width = q.shape
    heads = v.shape[2]
    documents.check(segment_ids, initial_segment, batch, length)
    floats = [x for x in (q, k, v, log_decay, initial_state) if x is not None]
    state_dtype = dispatch.state_dtype(*floats)

    shape = (batch, heads, width, v.shape[3])
    state = jnp.zeros(shape, state_dtype) if initial_state is None else initial_state.astype(state_dtype)
    by_platform = _default(length, log_decay, state)
    name = by_platform if implementation is None else implementation
    dispatch.choose("linear_attention", name, IMPLEMENTATIONS, by_platform)
    layout = placement.plan("linear_attention", b=batch, t=1 if name == "reference" else length, h=(q.shape[2], heads))
    chunk = _chunk(name, chunk_size, length // layout.pieces)
    settings = _Settings(name, width**-0.5 if scale is None else float(scale), chunk, layout.time)

    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None], (batch, length, heads))
    if segment_ids is not None:
        k, log_decay = _separate(k, log_decay, segment_ids, initial_segment, (batch, length, heads), state_dtype)

    decay_axes = "b t h ." if log_decay is not None and log_decay.ndim == 4 else "b t h"
    axes = ("b t h .", "b t h .", "b t h .", decay_axes, "b h . .")
    arrays = (q, k, v, log_decay, state)
    o, state = pieces.run(layout, functools.partial(_piece, settings), arrays, axes, ("b t h .", "b h . ."))
    return documents.zero_padding(o, segment_ids), state


def _piece(settings, q, k, v, log_decay, state):
    if settings.backend == "reference" or q.shape[1] == 0:
        return reference.forward(q, k, v, log_decay, state, scale=settings.scale)
    o, last = _attend(settings, *align((q, k, v, log_decay, state), over=pieces.over(settings.time)))
    return o, pieces.of_piece(-1, last, settings.time)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, log_decay, state):
    o, last, _ = _run(settings, q, k, v, log_decay, state, save=False)
    return o, last


def _run(settings, q, k, v, log_decay, state, save):
    if settings.time is not None:
        state = pieces.fold(summary.compose, summary.forward(k, v, log_decay, state.dtype), state, settings.time)
    return IMPLEMENTATIONS[settings.backend].forward(q, k, v, log_decay, state, **settings.arguments(), save=save)


def _attend_forward(settings, q, k, v, log_decay, state):
    o, last, starts = _run(settings, q, k, v, log_decay, state, save=True)
    return (o, last), (q, k, v, log_decay, starts)


def _attend_backward(settings, residuals, cotangents):
    q, k, v, log_decay, starts = residuals
    d_o, d_last = cotangents
    if settings.time is not None:
        decay, added = summary.backward(q, d_o, log_decay, d_last.dtype, settings.scale)
        through = (decay, summary.compose(d_last, (decay, added)))
        d_last = d_last + pieces.fold(summary.compose, through, jnp.zeros_like(d_last), settings.time, reverse=True)
    backward = IMPLEMENTATIONS[settings.backend].backward
    *gradients, d_state = backward(q, k, v, log_decay, starts, d_o, d_last, **settings.arguments())
    return align((*gradients, pieces.only(0, d_state, settings.time)))


_attend.defvjp(_attend_forward, _attend_backward)


def _separate(k, log_decay, segment_ids, initial_segment, shape, dtype):
    """(k, log_decay) such that a document's first token forgets everything before it and padding does nothing."""
    if log_decay is None:
        log_decay = jnp.zeros(shape, dtype)

    def choose(where, value, otherwise):
        return jnp.where(where.reshape(where.shape + (1,) * (otherwise.ndim - 2)), jnp.full_like(otherwise, value), otherwise)

    log_decay = choose(segment_ids == 0, 0.0, log_decay)
    log_decay = choose(documents.starts(segment_ids, initial_segment), -jnp.inf, log_decay)
    return documents.zero_padding(k, segment_ids), log_decay


def _default(length, log_decay, states):
    """The implementation that None stands for, `states` being the initial ones: the faster for forward and backward where both were
    timed (2 CPU cores). A loop wins while all states stay in the cache and matrix products are small."""
    width, value_width = states.shape[2:]
    if not dispatch.on_cpu():
        return "chunked"
    if length == 1 or (log_decay is not None and log_decay.ndim == 4):
        return "loop"
    wide = width * value_width >= (16 * 16 if log_decay is None else 64 * 64)
    return "chunked" if wide or (log_decay is not None and states.size >= 2**15) else "loop"


def _chunk(name, chunk_size, length):
    if chunk_size is None:
        chunk_size = 64 if name == "chunked" and not dispatch.on_cpu() else 32
    elif name == "reference":
        raise ValueError(f'chunk_size={chunk_size!r} means nothing to implementation="reference", wanted None')
    elif not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}, wanted a positive int or None")
    if length <= chunked.SUB_BLOCK:
        return min(chunk_size, max(length, 1))
    return min(chunk_size, -(-length // chunked.SUB_BLOCK) * chunked.SUB_BLOCK)


def _check(q, k, v, log_decay, initial_state):
    for name, x in (("q", q), ("k", k), ("v", v), ("log_decay", log_decay), ("initial_state", initial_state)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {x.dtype}, wanted a floating dtype")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}, wanted 4 axes [b, t, heads, width]")
    if k.shape != q.shape:
        raise ValueError(f"k has shape {k.shape}, wanted q's {q.shape}")
    batch, length, groups, width = q.shape
    heads = v.shape[2]
    if v.shape[:2] != (batch, length) or groups == 0 or heads % groups:
        raise ValueError(f"v has shape {v.shape}, wanted [{batch}, {length}, a multiple of q's {groups} heads, v]")
    forms = ((heads,), (batch, length, heads), (batch, length, heads, width))
    if log_decay is not None and log_decay.shape not in forms:
        raise ValueError(f"log_decay has shape {log_decay.shape}, wanted one of {', '.join(map(str, forms))}")
    wanted = (batch, heads, width, v.shape[3])
    if initial_state is not None and initial_state.shape != wanted:
        raise ValueError(f"initial_state has shape {initial_state.shape}, wanted {wanted}")
