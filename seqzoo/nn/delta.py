"""The delta rule: a memory is told the difference between a value and what the key finds already."""

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention


def delta_rule(
    q: Array, k: Array, v: Array, strength: Array, log_decay: Array | None = None, *, undecayed: Array | None = None, **settings
) -> tuple[Array, Array]:
    """S_t = S~_t + beta_t k_t (v_t - S~_t^T k_t)^T, S~_t = Diag(exp g_t) S_{t-1}, read by q: a call of `linear_attention`.

    Args:
      q, k: [b, t, h, k]; k of unit length, for the state to stay bounded.
      v: [b, t, h, v].
      strength: beta [b, t, h], from 0, nothing, to 1, the value replaces what was found, and 2, which mirrors it.
      log_decay: g, None, [b, t, h] or [b, t, h, k].
      undecayed: p [b, t, h, k]: what is found is S_{t-1}^T p_t, of the memory before its decay, and not S~_t^T k_t.
      settings: others of `linear_attention`.
    """
    if undecayed is None:
        kept = 1 if log_decay is None else jnp.exp(log_decay if log_decay.ndim == 4 else log_decay[..., None])
        undecayed = (kept * k).astype(k.dtype)
    return linear_attention(q, (strength[..., None] * k).astype(k.dtype), v, log_decay=log_decay, a=-undecayed, **settings)


def unit(x: Array, eps: float) -> Array:
    """x / sqrt(sum(x^2) + eps) over the last axis, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / jnp.sqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def delta_product(q: Array, k: Array, v: Array, strength: Array, log_decay: Array | None, *, segment_ids=None, **settings):
    """Several steps of the delta rule per token, the decay before the first and the read behind the last.

    Args:
      q: [b, t, h, k]; k: [b, t, n, h, k]; v: [b, t, n, h, v]; strength: [b, t, n, h]; log_decay: None or [b, t, h].
      segment_ids: [b, t]; settings: others of `linear_attention`.
    Returns:
      As `delta_rule`. Cost: that of n t tokens.
    """
    batch, length, steps = strength.shape[:3]
    flat = lambda x: x.reshape(batch, length * steps, *x.shape[3:])
    at = lambda x, step: flat(jnp.zeros((batch, length, steps, *x.shape[2:]), x.dtype).at[:, :, step].set(x))
    ids = None if segment_ids is None else jnp.repeat(segment_ids, steps, axis=1)
    first = None if log_decay is None else at(log_decay, 0)
    o, memory = delta_rule(at(q, -1), flat(k), flat(v), flat(strength), first, segment_ids=ids, **settings)
    return o.reshape(batch, length, steps, *o.shape[2:])[:, :, -1], memory
