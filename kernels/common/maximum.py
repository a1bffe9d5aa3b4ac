"""The running maximum of a document: the pre-pass that keeps exponential gates in range (Aaren, mLSTM)."""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import documents, pieces, placement


def running_maximum(
    x: Array, *, initial_state: Array | None = None, initial_segment: Array | None = None, segment_ids: Array | None = None
) -> tuple[Array, Array]:
    """m_t = max(m_{t-1}, x_t) inside each document, -inf before its first token.

    Args:
      x: [b, t, h] float.
      initial_state: [b, h] m before the first token; None is -inf.
      initial_segment: [b] int32, the document it belongs to; 0 or None: the first token's.
      segment_ids: [b, t] int32, ids of packed documents; padding (0) is passed over.
    Returns:
      (m_{t-1}, m_t), both [b, t, h]. No gradient flows: what is divided by exp(m) above and below does not depend on m.
    """
    x = lax.stop_gradient(x)
    first = jnp.full_like(x[:, 0], -jnp.inf) if initial_state is None else lax.stop_gradient(initial_state).astype(x.dtype)
    starts = jnp.zeros(x.shape[:2], bool)
    if segment_ids is not None:
        starts = documents.starts(segment_ids, initial_segment)
        x = jnp.where((segment_ids != 0)[..., None], x, -jnp.inf)

    def later(a, b):
        return a[0] | b[0], jnp.where(b[0], b[1], jnp.maximum(a[1], b[1]))

    def piece(x, starts, first):
        restarted, maximum = lax.associative_scan(later, (jnp.broadcast_to(starts[..., None], x.shape), x), axis=1)
        if layout.time is not None:
            forgets, largest = restarted[:, -1], maximum[:, -1]
            step = lambda m, summary: jnp.where(summary[0], summary[1], jnp.maximum(m, summary[1]))
            first = pieces.fold(step, (forgets, largest), first, layout.time)
        maximum = jnp.where(restarted, maximum, jnp.maximum(maximum, first[:, None]))
        return jnp.concatenate([first[:, None], maximum[:, :-1]], axis=1), maximum

    layout = placement.plan("running_maximum", b=x.shape[0], t=x.shape[1], h=x.shape[2:])
    return pieces.run(layout, piece, (x, starts, first), ("b t h", "b t", "b h"), ("b t h", "b t h"))
