"""The running maximum of a document: the pre-pass that keeps exponential gates in range (Aaren, mLSTM, RWKV-4)."""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import documents, pieces, placement


def running_maximum(
    x: Array,
    *,
    log_decay: Array | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
) -> tuple[Array, Array]:
    """m_t = max(m_{t-1} + g_t, x_t) inside each document, -inf before its first token.

    Args:
      x: [b, t, h] float, -inf included.
      log_decay: g <= 0, [b, t, h], -inf included, which forgets exactly; None is 0 everywhere.
      initial_state: [b, h] m before the first token; None is -inf.
      initial_segment: [b] int32, the document it belongs to; 0 or None: the first token's.
      segment_ids: [b, t] int32, ids of packed documents; padding (0) is passed over, and decays nothing.
    Returns:
      (m_{t-1}, m_t), both [b, t, h] in x's dtype; m_{t-1} is -inf where a document starts, and at padding. No gradient flows: a
      memory kept over exp(m) is read in such a way that m cancels.
    Decays are only ever added up, and never taken apart again: no digits are lost behind a large one.
    Cost: O(t h log t) additions and comparisons, by `lax.associative_scan`; a mesh that cuts time moves 2 h numbers per piece.
    """
    x = lax.stop_gradient(x)
    decay = jnp.zeros_like(x) if log_decay is None else lax.stop_gradient(log_decay).astype(x.dtype)
    first = jnp.full_like(x[:, 0], -jnp.inf) if initial_state is None else lax.stop_gradient(initial_state).astype(x.dtype)
    fresh = None  # the tokens that nothing comes before
    if segment_ids is not None:
        real = (segment_ids != 0)[..., None]
        starts = documents.starts(segment_ids, initial_segment)[..., None]
        fresh = starts | ~real
        x = jnp.where(real, x, -jnp.inf)
        decay = jnp.where(starts, -jnp.inf, jnp.where(real, decay, 0))  # a new document forgets all that was before

    def piece(x, decay, first):
        kept, maximum = lax.associative_scan(_later, (decay, x), axis=1)
        if layout.time is not None:
            first = pieces.fold(lambda m, after: _later((0, m), after)[1], (kept[:, -1], maximum[:, -1]), first, layout.time)
        maximum = jnp.maximum(first[:, None] + kept, maximum)
        return jnp.concatenate([first[:, None], maximum[:, :-1]], axis=1), maximum

    layout = placement.plan("running_maximum", b=x.shape[0], t=x.shape[1], h=x.shape[2:])
    before, maximum = pieces.run(layout, piece, (x, decay, first), ("b t h", "b t h", "b h"), ("b t h", "b t h"))
    return (before if fresh is None else jnp.where(fresh, -jnp.inf, before)), maximum


def _later(a: tuple, b: tuple) -> tuple:
    """What two stretches do to m, one behind the other, each as (the sum of its decays, the maximum from -inf on)."""
    return a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])
