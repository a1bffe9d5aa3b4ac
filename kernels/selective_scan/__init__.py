"""Mamba's selective scan (S6): a diagonal state space model whose step, input and output maps depend on the token.

`selective_scan` here: signature and checks -> `vjp.py`: derivative rule, context parallelism -> one of the implementations
`reference.py`: the definition     `recurrent.py`: token by token, in place     `chunkwise.py`: all chunks of a row at once
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import implementations, segments, sharding
from seqzoo.kernels.selective_scan import chunkwise, recurrent
from seqzoo.kernels.selective_scan.vjp import Implementation, Settings, run_shard

__all__ = ["selective_scan"]

IMPLEMENTATIONS = {
    "recurrent": Implementation(recurrent.forward, recurrent.backward),
    "chunkwise": Implementation(chunkwise.forward, chunkwise.backward),
    "reference": None,
}


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
    """Computes h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t,  y_t = h_t C_t + D x_t: each of d channels has n states of its own.

    In letters, h[d, n] = exp(dt[d] A[d, n]) h[d, n] + dt[d] x[d] B[n] and y[d] = sum_n h[d, n] C[n] + D[d] x[d].

    Args:
      x: [b, t, d] float, t >= 1.
      dt: [b, t, d] float step sizes in [0, inf]. inf is defined: the decay is exactly 0 and the token writes nothing.
      A: [d, n] float, below 0.
      B: [b, t, n] float, the input map; or [b, t, g, n], one for each of g groups of d / g neighbouring channels.
      C: the output map, of B's shape.
      D: [d] float, the skip connection; None is none.
      initial_state: [b, d, n] h before the first token; None is zero.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token; 0 is padding, which neither writes nor decays. A document starts from h = 0.
      implementation: None, a name, or several names of which the first is used:
        "reference": `lax.scan`; the definition.
        "recurrent": token by token, in place.
        "chunkwise": all chunks at once, about 2.8 sqrt(t) steps.
        None takes "recurrent" on CPUs, else "chunkwise".

    Returns:
      (y, last): y [b, t, d] in x's dtype, exactly 0 at padding; last [b, d, n] in promote(float32, inputs), the final state.

    Raises:
      ValueError: shapes or dtypes that do not fit, or an unknown implementation.

    States are computed in promote(float32, inputs). Time O(b t d n), bound by the exponentials; nothing of size [b, t, d, n]
    exists: backward recomputes the states from every 16th. Residuals are the inputs and b t d n / 16 states. The input is that of
    Mamba's code (Euler, dt x B), not the paper's zero-order hold. Source: Gu & Dao, 2023, arXiv:2312.00752.
    """
    if B.ndim == 4:
        grouped = partial(selective_scan, initial_segment=initial_segment, segment_ids=segment_ids, implementation=implementation)
        return _by_groups(grouped, x, dt, A, B, C, D, initial_state)
    _check(x, dt, A, B, C, D, initial_state, initial_segment, segment_ids)
    # Not measured on GPUs: there the choice is of few steps, as every step is a kernel launch.
    default = "recurrent" if implementations.on_cpu() else "chunkwise"
    passes = implementations.choose("selective_scan", implementation, IMPLEMENTATIONS, default)
    shards = sharding.plan("selective_scan", b=x.shape[0], t=1 if passes is None else x.shape[1], h=x.shape[2:])
    floats = [a for a in (x, dt, A, B, C, D, initial_state) if a is not None]
    dtype, out_dtype = implementations.state_dtype(*floats), x.dtype
    x, dt, B, C = (segments.mask_padding(a, segment_ids).astype(dtype) for a in (x, dt, B, C))  # dt 0: padding keeps h
    initial = jnp.zeros(x.shape[:1] + A.shape, dtype) if initial_state is None else initial_state.astype(dtype)

    # Two uses of dt part here: a document's first token decays by 0, as if its dt were inf, and yet writes.
    inputs = jnp.where(jnp.isinf(dt), 0, dt) * x
    if segment_ids is not None:
        dt = jnp.where(segments.starts(segment_ids, initial_segment)[:, :, None], jnp.inf, dt)
    arrays = (dt, inputs, A.astype(dtype), B, C, initial)
    axes = ("b t h", "b t h", "h .", "b t .", "b t .", "b h .")
    y, last = sharding.run_sharded(shards, partial(run_shard, Settings(passes, shards.time)), arrays, axes, ("b t h", "b h ."))
    if D is not None:
        y = y + D.astype(dtype)[None, None] * x
    return segments.mask_padding(y, segment_ids).astype(out_dtype), last


def _by_groups(scan, x, dt, A, B, C, D, initial_state) -> tuple[Array, Array]:
    """`scan` of each group of channels with its own B and C."""
    groups = B.shape[2]
    if C.shape != B.shape or x.ndim != 3 or groups < 1 or x.shape[2] % groups:
        raise ValueError(
            f"x, B, C have shapes {x.shape}, {B.shape}, {C.shape}; wanted [b, t, d], and twice [b, t, g, n] with g a divisor of d"
        )
    arrays = {"x": x, "dt": dt, "A": A, "D": D, "initial_state": initial_state}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    axes = {name: {"A": 0, "D": 0, "initial_state": 1}.get(name, 2) for name in arrays}  # of the channels
    for name, axis in axes.items():
        if arrays[name].ndim <= axis or arrays[name].shape[axis] != x.shape[2]:
            raise ValueError(f"{name} has shape {arrays[name].shape}, wanted {x.shape[2]} channels on axis {axis}, as x has")
    split = lambda array, axis: array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])
    by_group = {name: split(array, axes[name]) for name, array in arrays.items()}
    each = lambda arrays, B, C: scan(B=B, C=C, **arrays)
    y, last = jax.vmap(each, in_axes=(axes, 2, 2), out_axes=(2, 1))(by_group, B, C)
    return y.reshape(x.shape), last.reshape(x.shape[0], *A.shape)


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
