"""Rotary position embedding, RoPE (Su et al. 2021, arXiv:2104.09864)."""

import jax.numpy as jnp
from jax import Array


def check_rotary(dim: int, theta: float | None, settings: str) -> None:
    """Raises ValueError if there is a rotation (theta is not None) of an odd number of channels, `dim`, which `settings` set."""
    if theta is not None and dim % 2:
        raise ValueError(f"rotary positions need an even key width, found {dim}: change {settings}, or set rope_theta=None")


def rotate(x: Array, positions: Array, theta: float = 10000.0, dim: int | None = None) -> Array:
    """Rotates pairs (x_i, x_{i + k/2}) by positions * theta^(-2i/k): the half-split layout of released checkpoints.

    Args:
      x: [b, t, h, k], k even.
      positions: [b, t] int32.
      theta: wavelengths run from 2 pi to 2 pi theta.
      dim: number of channels, the first ones, that are rotated as if they were all; None: all.
    Returns:
      [b, t, h, k] in x's dtype; angles are taken in float32 or better.
    """
    if dim is not None and dim < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :dim], positions, theta), x[..., dim:]], axis=-1)
    half = x.shape[-1] // 2
    dtype = jnp.result_type(x, jnp.float32)
    frequencies = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angles = positions.astype(dtype)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
