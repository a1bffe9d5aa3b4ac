"""Mamba's selective scan (S6): a diagonal state space model whose step, input and output maps depend on the token."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import implementations, segments, sharding
from seqzoo.kernels.common.vma import match_vma
from seqzoo.kernels.selective_scan import chunkwise, recurrent, reference

__all__ = ["selective_scan"]


def selective_scan(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
    implementation: str | Sequence[str] | None = None,
) -> tuple[Array, Array]:
    """h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t,  y_t = h_t C_t + D x_t: each of d channels has n states of its own.

    In letters, h[d, n] = exp(dt[d] A[d, n]) h[d, n] + dt[d] x[d] B[n] and y[d] = sum_n h[d, n] C[n] + D[d] x[d].

    Args:
      x: [b, t, d] float, t >= 1.
      dt: [b, t, d] float step sizes in [0, inf]. inf is defined: the decay is exactly 0 and the token writes nothing.
      A: [d, n] float, below 0.
      B: [b, t, n] float, how a token is written.
      C: [b, t, n] float, how the state is read.
      D: [d] float, the skip connection; None is none.
      initial_state: [b, d, n]; None is zero.
      initial_segment: [b] int32, the last non-zero id of the calls before; None or 0: the initial state belongs to the first
        document.
      segment_ids: [b, t] int32, ids of packed documents, which forget what came before them; 0 is padding, which leaves h as it
        is. None: all tokens continue the initial state.
      implementation: None, a name, or several names of which the first is used:
        "reference": `lax.scan`; the definition.
        "recurrent": token by token, in place.
        "chunkwise": all chunks at once, about 2.8 sqrt(t) steps.
        None takes "recurrent" on CPUs, else "chunkwise".

    Returns:
      (y, last): y [b, t, d] in x's dtype, exactly 0 at padding; last [b, d, n] in promote(float32, inputs), the state to carry on.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown implementation.

    States are computed in promote(float32, inputs). Time O(b t d n), bound by the exponentials; nothing of size [b, t, d, n]
    exists: backward recomputes the states from every 16th. Residuals are the inputs and b t d n / 16 states. The write is that of
    Mamba's code (Euler, dt x B), not the paper's zero-order hold. Source: Gu & Dao, 2023, arXiv:2312.00752.
    """
    _check(x, dt, A, B, C, D, initial_state, initial_segment, segment_ids)
    # Not measured on GPUs: there the choice is of few steps, as every step is a kernel launch.
    default = "recurrent" if implementations.on_cpu() else "chunkwise"
    form = implementations.choose("selective_scan", implementation, _FORMS, default)
    shards = sharding.plan("selective_scan", b=x.shape[0], t=1 if form is _reference else x.shape[1], h=x.shape[2:])
    floats = [a for a in (x, dt, A, B, C, D, initial_state) if a is not None]
    dtype, out_dtype = implementations.state_dtype(*floats), x.dtype
    x, dt, B, C = (segments.mask_padding(a, segment_ids).astype(dtype) for a in (x, dt, B, C))  # dt 0: padding passes h on
    initial = jnp.zeros(x.shape[:1] + A.shape, dtype) if initial_state is None else initial_state.astype(dtype)

    # Two uses of dt part here: a document's first token decays by 0, as if its dt were inf, and yet writes.
    written = jnp.where(jnp.isinf(dt), 0, dt) * x
    if segment_ids is not None:
        dt = jnp.where(segments.starts(segment_ids, initial_segment)[:, :, None], jnp.inf, dt)
    arrays = (dt, written, A.astype(dtype), B, C, initial)
    axes = ("b t h", "b t h", "h .", "b t .", "b t .", "b h .")
    y, last = sharding.run_sharded(shards, partial(_piece, form, shards.time), arrays, axes, ("b t h", "b h ."))
    if D is not None:
        y = y + D.astype(dtype)[None, None] * x
    return segments.mask_padding(y, segment_ids).astype(out_dtype), last


def _piece(form, time, *arrays):
    """y and the last state of one piece along the mesh axis `time`, or of the whole (None)."""
    y, last = form(time, *match_vma(arrays, over=sharding.axis_tuple(time)))
    return y, sharding.broadcast_from_shard(-1, last, time)


def _reference(_, *arrays):
    return reference.scan(*arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(form, time, decay_dt, written, A, B, C, initial):
    return _forward(form, time, decay_dt, written, A, B, C, initial)[0]


def _forward(form, time, decay_dt, written, A, B, C, initial):
    initial = jnp.swapaxes(initial, 1, 2)
    if time is not None:
        initial = sharding.prefix_over_shards(_compose, recurrent.summary(decay_dt, written, A.T, B), initial, time)
    y, last, saved = form.forward(decay_dt, written, A.T, B, C, initial)
    return (y, jnp.swapaxes(last, 1, 2)), (decay_dt, written, A, B, C, saved)


def _backward(form, time, residuals, cotangents):
    decay_dt, written, A, B, C, saved = residuals
    dy, dlast = cotangents
    dlast = jnp.swapaxes(dlast, 1, 2)
    if time is not None:
        decay, added = recurrent.summary_back(decay_dt, A.T, C, dy)
        through = (decay, decay * dlast + added)
        dlast = dlast + sharding.prefix_over_shards(_compose, through, jnp.zeros_like(dlast), time, reverse=True)
    dg, du, dA, dB, dC, dinitial = form.backward(decay_dt, written, A.T, B, C, saved, dy, dlast)
    return match_vma((dg, du, dA.T, dB, dC, sharding.mask_to_shard(0, jnp.swapaxes(dinitial, 1, 2), time)))


def _compose(h, summary):
    decay, added = summary
    return decay * h + added


_scan.defvjp(_forward, _backward)
_FORMS = {"recurrent": partial(_scan, recurrent), "chunkwise": partial(_scan, chunkwise), "reference": _reference}


def _check(x, dt, A, B, C, D, initial_state, initial_segment, segment_ids) -> None:
    if x.ndim != 3 or x.shape[1] < 1:
        raise ValueError(f"x has shape {x.shape}, wanted [b, t, d] with t >= 1")
    batch, length, channels = x.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {A.shape}, wanted ({channels}, n)")
    states = A.shape[1]
    wanted = {
        "x": (x, x.shape),
        "dt": (dt, x.shape),
        "A": (A, A.shape),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
        "initial_state": (initial_state, (batch, channels, states)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None and (array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating)):
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, wanted float{list(shape)}")
    segments.check(segment_ids, initial_segment, batch, length)
