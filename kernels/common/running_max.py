"""Running maximum of each document, by an associative scan: the stabiliser of exponential gates (Aaren, mLSTM, RWKV-4).

A mixer with gates exp(x_t) first computes m_t, then uses exp(x_t - m_t), which cannot overflow; the factor cancels in its output.
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import segments, sharding


def running_max(
    x: Array,
    *,
    log_decay: Array | None = None,
    initial_state: Array | None = None,
    initial_segment: Array | None = None,
    segment_ids: Array | None = None,
) -> tuple[Array, Array]:
    """Computes m_t = max(m_{t-1} + g_t, x_t) inside each document, -inf before its first token.

    Args:
      x: [b, t, h] float, -inf included.
      log_decay: g <= 0, [b, t, h], -inf included, which forgets exactly; None is 0 everywhere.
      initial_state: [b, h] m before the first token; None is -inf.
      initial_segment: [b] int32 document of `initial_state`; None or 0: it belongs to the first token's document.
      segment_ids: [b, t] int32, ids of packed documents; padding (0) is skipped and decays nothing.
    Returns:
      (m_{t-1}, m_t), both [b, t, h] in x's dtype; m_{t-1} is -inf where a document starts, and at padding.
    Decays are only added, never subtracted: no digits are lost after a large one.
    Cost: O(t h log t) additions and comparisons, by `lax.associative_scan`; with sharded time 2 h numbers move per shard.
    """
    decay = jnp.zeros_like(x) if log_decay is None else log_decay.astype(x.dtype)
    first = jnp.full_like(x[:, 0], -jnp.inf) if initial_state is None else initial_state.astype(x.dtype)
    empty_past = None  # tokens without an earlier token in their document, and padding
    if segment_ids is not None:
        real = (segment_ids != 0)[..., None]
        starts = segments.starts(segment_ids, initial_segment)[..., None]
        empty_past = starts | ~real
        x = jnp.where(real, x, -jnp.inf)
        decay = jnp.where(starts, -jnp.inf, jnp.where(real, decay, 0))  # a document's first token forgets everything

    def local(x, decay, first):
        total_decay, maximum = lax.associative_scan(_compose, (decay, x), axis=1)
        if shards.time is not None:
            transition = total_decay[:, -1], maximum[:, -1]
            first = sharding.prefix_over_shards(lambda m, later: _compose((0, m), later)[1], transition, first, shards.time)
        maximum = jnp.maximum(first[:, None] + total_decay, maximum)
        return jnp.concatenate([first[:, None], maximum[:, :-1]], axis=1), maximum

    shards = sharding.plan("running_max", b=x.shape[0], t=x.shape[1], h=x.shape[2:])
    before, maximum = sharding.run_sharded(shards, local, (x, decay, first), ("b t h", "b t h", "b h"), ("b t h", "b t h"))
    return (before if empty_past is None else jnp.where(empty_past, -jnp.inf, before)), maximum


def _compose(a: tuple, b: tuple) -> tuple:
    """Joins two stretches of tokens, b after a; each is (the sum of its decays, its maximum when started at -inf)."""
    return a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])
