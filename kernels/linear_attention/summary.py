r"""What a piece of the sequence does to any state, as two matrices: S' = decay * S + added. For pieces of time on several devices.

    decay = exp(G_1 + ... + G_t)      added = \sum_j exp(G_{j+1} + ... + G_t) * k_j v_j^T        G_t = g_t + gv_t^T, [k, v]

and the same of gradients, R = decay * R' + scale \sum_i exp(G_1 + ... + G_i) * q_i do_i^T (up to G_{i-1} for an exclusive read).
One matrix product each, no outputs. All exponents are sums of non-positive terms, formed as such. Shapes as in `grouping.py`.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from .grouping import Decays, merge


def forward(k: Array, v: Array, decays: Decays, dtype) -> tuple[Array, Array]:
    """(decay, added), [b, h, k, v] or with axes of size 1."""
    later = jax.tree.map(lambda g: _others(g.astype(dtype), reverse=True), decays)
    return _decay(v, decays, dtype), _written(k.astype(dtype), v.astype(dtype), later)


def backward(q: Array, d_o: Array, decays: Decays, dtype, scale: float, exclusive: bool) -> tuple[Array, Array]:
    """The same of gradients, from those of the outputs."""
    so_far = _others if exclusive else lambda g: lax.cumsum(g, axis=1)
    exponents = jax.tree.map(lambda g: so_far(g.astype(dtype)), decays)
    return _decay(d_o, decays, dtype), scale * _written(q.astype(dtype), d_o.astype(dtype), exponents)


def compose(state: Array, summary: tuple[Array, Array]) -> Array:
    """The state after a piece."""
    decay, added = summary
    return decay * state + added


def _decay(v, decays, dtype):
    total = jnp.zeros_like(v, shape=(v.shape[0], v.shape[2], 1, 1), dtype=dtype)
    if decays.key is not None:
        key = jnp.sum(decays.key.astype(dtype), axis=1)
        total = total + key.reshape(key.shape + (1,) * (4 - key.ndim))
    if decays.value is not None:
        total = total + jnp.sum(decays.value.astype(dtype), axis=1)[:, :, None]
    return jnp.exp(total)


def _others(g, reverse=False):
    """[b, t, ...]: the sum before each token, or after it."""
    none = jnp.zeros_like(g[:, :1])
    others = jnp.concatenate([g[:, 1:], none] if reverse else [none, g[:, :-1]], axis=1)
    return lax.cumsum(others, axis=1, reverse=reverse)


def _written(k, v, exponents):
    """[b, h, k, v], the sum over t of k v^T, each faded by its exponents."""
    if exponents.value is not None:
        v = v * jnp.exp(exponents.value)
    if exponents.key is not None and exponents.key.ndim == 3:
        v = v * jnp.exp(exponents.key)[..., None]
    if exponents.key is not None and exponents.key.ndim == 4:
        k = jnp.repeat(k, v.shape[2] // k.shape[2], axis=2) * jnp.exp(exponents.key)
    groups = k.shape[2]
    v = v.reshape(*v.shape[:2], groups, -1, v.shape[3])
    return merge(jnp.einsum("btnk,btnrv->bnrkv", k, v, precision=lax.Precision.HIGHEST))
