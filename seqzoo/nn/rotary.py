"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

import jax.numpy as jnp
from jax import Array


def check_rotary(width: int, base: float | None, settings: str) -> None:
    """Raises ValueError if pairs of channels are to be rotated (base is not None) and `width` is odd; `settings` set it."""
    if base is not None and width % 2:
        raise ValueError(f"rotary positions need an even key width, found {width}: change {settings}, or set rope_theta=None")


def rotate(x: Array, positions: Array, base: float = 10000.0, width: int | None = None) -> Array:
    """Rotates pairs (x_i, x_{i + k/2}) by positions * base^(-2i/k): the half-split layout of released checkpoints.

    Args:
      x: [b, t, h, k], k even.
      positions: [b, t] int32.
      base: wavelengths run from 2 pi to 2 pi base.
      width: how many channels, the first, are rotated as if they were all; None: all.
    Returns:
      [b, t, h, k] in x's dtype; angles are taken in float32 or better.
    """
    if width is not None and width < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], positions, base), x[..., width:]], axis=-1)
    half = x.shape[-1] // 2
    dtype = jnp.result_type(x, jnp.float32)
    frequencies = base ** (-jnp.arange(half, dtype=dtype) / half)
    angles = positions.astype(dtype)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
