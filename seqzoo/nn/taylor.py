"""The second-order Taylor feature map: inner products of features are the exponential's series up to the square."""

import jax.numpy as jnp
from jax import Array


def taylor_feature_dim(f: int) -> int:
    """Number of features that `taylor_features` makes of f numbers: 1 + f + f (f + 1) / 2."""
    return 1 + f + f * (f + 1) // 2


def taylor_features(x: Array) -> Array:
    """phi with phi(q)^T phi(k) = 1 + s + s^2 / 2 for s = q^T k / sqrt(f), which is never below 1/2.

        phi(x) = [1,  u_i,  u_i^2 / sqrt(2),  u_i u_j (i < j)]        u = x / f^(1/4)

    Each feature u_i u_j also accounts for u_j u_i: u u^T / sqrt(2) is symmetric. The published training code
    keeps all f^2 products; the inner products are the same.

    Args:
      x: [..., f] float.
    Returns:
      [..., 1 + f + f (f + 1) / 2] in x's dtype.
    Source: Arora et al. 2024, arXiv:2402.18668.
    """
    f = x.shape[-1]
    u = x * f**-0.25
    products = [u[..., i : i + 1] * u[..., i + 1 :] for i in range(f - 1)]
    return jnp.concatenate([jnp.ones_like(u[..., :1]), u, u * u * 2**-0.5, *products], axis=-1)
