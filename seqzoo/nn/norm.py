"""Normalisations over the last axis. Statistics are taken in float32 or better; the result has the input's dtype."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array


def inverse_length(x: Array, eps: float) -> Array:
    """1 / sqrt(mean(x^2) + eps) over the last axis, which keeps size 1.

    A quotient, not `rsqrt`: the derivative of that holds the power -3/2 of the mean square, which leaves float32 where x is 1e15.
    """
    return 1 / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019, arXiv:1910.07467); the mean runs over each of `groups` parts."""

    def __init__(
        self,
        width: int,
        *,
        eps: float = 1e-5,
        axis: str | None = "embed",
        groups: int = 1,
        param_dtype: Any = jnp.float32,
        rngs=None,
    ):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype), axes=(axis,))
        self.eps, self.groups = eps, groups

    def __call__(self, x: Array) -> Array:
        """[..., width] -> [..., width]."""
        wide = x.astype(jnp.result_type(x, jnp.float32))
        parts = wide.reshape(*x.shape[:-1], self.groups, -1)
        y = (parts * inverse_length(parts, self.eps)).reshape(x.shape)
        return (y * _last_axis(self.scale, y)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias (Ba et al. 2016, arXiv:1607.06450).

    Mean and variance are those of each of `groups` parts (Wu & He 2018, arXiv:1803.08494); scale and bias are per channel.
    """

    def __init__(
        self,
        width: int,
        *,
        eps: float = 1e-5,
        axis: str | None = "embed",
        groups: int = 1,
        bias: bool = True,
        param_dtype: Any = jnp.float32,
        rngs=None,
    ):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype), axes=(axis,)) if bias else None
        self.eps, self.groups = eps, groups

    def __call__(self, x: Array) -> Array:
        """[..., width] -> [..., width]."""
        wide = x.astype(jnp.result_type(x, jnp.float32))
        parts = wide.reshape(*x.shape[:-1], self.groups, -1)
        centred = parts - jnp.mean(parts, axis=-1, keepdims=True)
        y = (centred * inverse_length(centred, self.eps)).reshape(x.shape)
        y = y * _last_axis(self.scale, y)
        return (y if self.bias is None else y + _last_axis(self.bias, y)).astype(x.dtype)


def _last_axis(parameter: nnx.Param, like: Array) -> Array:
    return jnp.expand_dims(parameter[...].astype(like.dtype), range(like.ndim - 1))
