"""Step sizes of state-space models, and the biases that make them."""

import math

import jax
import jax.numpy as jnp
from jax import Array

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # Gu & Dao 2023, arXiv:2312.00752, and their released code


def log_timestep(key: Array, shape: tuple[int, ...], dtype, low: float = DT_MIN, high: float = DT_MAX) -> Array:
    """log dt for dt log-uniform in [low, high]; ValueError unless 0 < low <= high."""
    if not 0 < low <= high:
        raise ValueError(f"dt_min={low} and dt_max={high}: wanted 0 < dt_min <= dt_max")
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.random.uniform(key, shape, wide, math.log(low), math.log(high)).astype(dtype)


def timestep_bias(key: Array, shape: tuple[int, ...], dtype, low: float = DT_MIN, high: float = DT_MAX) -> Array:
    """A bias b such that softplus(b) is log-uniform in [low, high] (and at least DT_FLOOR)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    dt = jnp.maximum(jnp.exp(log_timestep(key, shape, wide, low, high)), DT_FLOOR)
    return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)  # the inverse of softplus, without overflow
