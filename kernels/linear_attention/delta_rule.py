r"""Delta rules: the state learns the difference between a value and what the state returns for its key.

    S~_t = Diag(exp g_t) S_{t-1}        S_t = S~_t + beta_t k_t (v_t - S~_t^T k_t)^T

Calls of `linear_attention` with the low-rank term a_t = -exp(g_t) k_t and the keys beta_t k_t. Sources: Schlag et al., 2021,
arXiv:2102.11174; Yang et al., 2024, arXiv:2406.06484 and (gated) arXiv:2412.06464; several steps per token: Siems et al., 2025,
arXiv:2502.10297.
"""

import jax.numpy as jnp
from jax import Array

from . import linear_attention


def delta_rule(
    q: Array, k: Array, v: Array, beta: Array, log_decay: Array | None = None, *, undecayed: Array | None = None, **settings
) -> tuple[Array, Array]:
    """Computes the delta rule, read by q after each token.

    Args:
      q, k: [b, t, h, k]; k of unit length (`l2_normalise`), for the state to stay bounded.
      v: [b, t, h, v].
      beta: [b, t, h], the writing strength: 0 writes nothing, 1 replaces the value of the key, 2 reflects it.
      log_decay: g, None, [b, t, h] or [b, t, h, k].
      undecayed: p [b, t, h, k]; v_t is compared with S_{t-1}^T p_t, read before the decay, instead of S~_t^T k_t.
      settings: others of `linear_attention`.
    Returns:
      As `linear_attention`.
    """
    if undecayed is None:
        decay = 1 if log_decay is None else jnp.exp(log_decay if log_decay.ndim == 4 else log_decay[..., None])
        undecayed = (decay * k).astype(k.dtype)
    return linear_attention(q, (beta[..., None] * k).astype(k.dtype), v, log_decay=log_decay, a=-undecayed, **settings)


def delta_product(q: Array, k: Array, v: Array, beta: Array, log_decay: Array | None, *, segment_ids=None, **settings):
    """Computes several steps of the delta rule per token, with the decay before the first step and the read after the last.

    Args:
      q: [b, t, h, k]; k: [b, t, n, h, k]; v: [b, t, n, h, v]; beta: [b, t, n, h]; log_decay: None or [b, t, h].
      segment_ids: [b, t]; settings: others of `linear_attention`.
    Returns:
      As `linear_attention`. Cost: that of n t tokens.
    """
    batch, length, steps = beta.shape[:3]
    flat = lambda x: x.reshape(batch, length * steps, *x.shape[3:])
    at = lambda x, step: flat(jnp.zeros((batch, length, steps, *x.shape[2:]), x.dtype).at[:, :, step].set(x))
    ids = None if segment_ids is None else jnp.repeat(segment_ids, steps, axis=1)
    first = None if log_decay is None else at(log_decay, 0)
    o, state = delta_rule(at(q, -1), flat(k), flat(v), flat(beta), first, segment_ids=ids, **settings)
    return o.reshape(batch, length, steps, *o.shape[2:])[:, :, -1], state


def l2_normalise(x: Array, eps: float) -> Array:
    """Computes x / sqrt(sum(x^2) + eps) over the last axis, in x's dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / jnp.sqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)
