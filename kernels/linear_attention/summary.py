r"""What a piece of the sequence does to any state, as two matrices: S' = decay * S + added. For pieces of time on several devices.

    decay = exp(g_1 + ... + g_t)      added = \sum_j exp(g_{j+1} + ... + g_t) k_j v_j^T

and the same of gradients, R = decay * R' + scale \sum_i exp(g_1 + ... + g_i) q_i do_i^T. One matrix product each, no outputs.
All exponents are sums of non-positive terms, formed as such. Shapes as in `grouping.py`.
"""

import jax.numpy as jnp
from jax import Array, lax

from .grouping import merge, over_state


def forward(k: Array, v: Array, log_decay: Array | None, dtype) -> tuple[Array, Array]:
    """(decay [b, h, 1 or k, 1], added [b, h, k, v])."""
    later = None if log_decay is None else _after(log_decay.astype(dtype))
    return _decay(v, log_decay, dtype), _written(k.astype(dtype), v.astype(dtype), later)


def backward(q: Array, d_o: Array, log_decay: Array | None, dtype, scale: float) -> tuple[Array, Array]:
    """The same of gradients, from those of the outputs."""
    so_far = None if log_decay is None else lax.cumsum(log_decay.astype(dtype), axis=1)
    return _decay(d_o, log_decay, dtype), scale * _written(q.astype(dtype), d_o.astype(dtype), so_far)


def compose(state: Array, summary: tuple[Array, Array]) -> Array:
    """The state after a piece."""
    decay, added = summary
    return decay * state + added


def _decay(v, log_decay, dtype):
    if log_decay is None:
        return jnp.ones_like(v, shape=(v.shape[0], v.shape[2], 1, 1), dtype=dtype)
    return over_state(jnp.exp(jnp.sum(log_decay.astype(dtype), axis=1)))


def _after(g):
    """[b, t, ...]: the sum after each token."""
    later = jnp.concatenate([g[:, 1:], jnp.zeros_like(g[:, :1])], axis=1)
    return lax.cumsum(later, axis=1, reverse=True)


def _written(k, v, exponent):
    """[b, h, k, v], the sum over t of exp(exponent) k v^T."""
    groups = k.shape[2]
    if exponent is not None and exponent.ndim == 4:
        k = jnp.repeat(k, v.shape[2] // groups, axis=2) * jnp.exp(exponent)
        return jnp.einsum("bthk,bthv->bhkv", k, v, precision=lax.Precision.HIGHEST)
    if exponent is not None:
        v = v * jnp.exp(exponent)[..., None]
    v = v.reshape(*v.shape[:2], groups, -1, v.shape[3])
    return merge(jnp.einsum("btnk,btnrv->bnrkv", k, v, precision=lax.Precision.HIGHEST))
