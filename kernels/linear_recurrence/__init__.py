"""Elementwise linear recurrence h_t = a_t h_{t-1} + b_t: the state of RG-LRU, HGRN, minGRU, qLSTM, LRU, S4D, S5 and MEGA.

`linear_recurrence` here: signature and checks -> `vjp.py`: derivative rule, context parallelism -> one of the implementations
`reference.py`: the definition     `recurrent.py`: token by token, in place     `chunkwise.py`: all chunks of a row at once
`decay.py`: a_t from the decays given and the borders of documents
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import implementations, segments, sharding
from seqzoo.kernels.linear_recurrence import chunkwise, recurrent
from seqzoo.kernels.linear_recurrence.decay import segment_mask
from seqzoo.kernels.linear_recurrence.vjp import Implementation, Settings, run_shard

__all__ = ["linear_recurrence"]

IMPLEMENTATIONS = {
    "recurrent": Implementation(recurrent.forward, recurrent.backward),
    "chunkwise": Implementation(chunkwise.forward, chunkwise.backward),
    "reference": None,
}


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
    """Computes h_t = a_t * h_{t-1} + b_t, elementwise.

    Args:
      a: [b, t, ...] decay, any finite real (or complex) value; exactly 0 forgets everything. Its first axis may be 1, one decay for
        all rows, and its second axis, one for all tokens: then it is never broadcast over the tokens, nor is its gradient.
      b: [b, t, ...] input, same shape and dtype; t >= 1.
      log: a is the logarithm of the decay, real and <= 0; -inf forgets everything, and its gradient is 0. A bfloat16 logarithm can
        express decays nearer to 1 than 1 - 2^-9: the decay is computed from it in float32, token by token.
      initial_state: [b, ...] h before the first token; None is zero.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32 document of each token; 0 is padding, which neither writes nor decays. A document starts from h = 0.
      reverse: run from the last token to the first, h_t = a_t * h_{t+1} + b_t. Then a document starts at its last token,
        `initial_state` and `initial_segment` are those after the last token, and the state returned is that at the first token.
      implementation: None, a name, or several names of which the first is used:
        "reference": `lax.scan`; the definition.
        "recurrent": token by token, in place.
        "chunkwise": all chunks at once, 2.8 sqrt(t) steps.
        None takes "recurrent" on CPUs, else "chunkwise".

    Returns:
      (h, last): h [b, t, ...] in b's dtype, exactly 0 at padding; last [b, ...] in promote(float32, b.dtype), the final state.

    Raises:
      ValueError: shapes or dtypes that differ (both named), complex logarithms, or an unknown implementation.

    Backward: a reverse recurrence; residuals are a and h. Time and memory O(b t d); documents add one byte per token. A decay that
    all rows share but not all tokens is broadcast over the rows. "chunkwise" requires that the product of |a| over sqrt(t / 2)
    tokens does not overflow; sharded time, that the product over a shard does not. Source: Martin & Cundy, 2018, arXiv:1709.04057.
    """
    _check(a, b, log, initial_state, initial_segment, segment_ids)
    # On CPUs "recurrent" was the faster at every recorded shape (benchmarks/results/kernels_cpu.json). Not measured on GPUs: there
    # the choice is of few steps, as every step is a kernel launch.
    default = "recurrent" if implementations.on_cpu() else "chunkwise"
    passes = implementations.choose("linear_recurrence", implementation, IMPLEMENTATIONS, default)
    shards = sharding.plan("linear_recurrence", b=b.shape[0], t=1 if passes is None else b.shape[1], h=b.shape[2:3])

    dtype = implementations.state_dtype(b)
    initial = jnp.zeros(b.shape[:1] + b.shape[2:], dtype) if initial_state is None else initial_state.astype(dtype)
    if a.shape[1] > 1:
        a = segments.mask_padding(jnp.broadcast_to(a, b.shape), segment_ids)
    mask = None if segment_ids is None else segment_mask(segment_ids, initial_segment, reverse)
    trailing = " ".join("h" if i == 0 else "." for i in range(b.ndim - 2))
    tokens, state = f"b t {trailing}", f"b {trailing}"
    run = partial(run_shard, Settings(passes, shards.time, reverse), log)
    arrays = (a, mask, segments.mask_padding(b, segment_ids), initial)
    h, last = sharding.run_sharded(shards, run, arrays, (tokens, "b t", tokens, state), (tokens, state))
    return segments.mask_padding(h, segment_ids), last


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
