"""Channel mixers: the half of a block that works on channels. Same signature as a mixer, and their own registry."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from seqzoo.channels.base import Pointwise, register, registry
from seqzoo.channels.mlp import GeGLU, GeluMLP, SwiGLU
from seqzoo.channels.rwkv import RWKVChannelMix

__all__ = ["GeGLU", "GeluMLP", "Pointwise", "RWKVChannelMix", "SwiGLU", "create", "register", "registry"]


def create(
    spec: str,
    d_model: int,
    *,
    depth: tuple[Any, int] | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Module | None:
    """Builds the channel mixer that a spec string names, None for "none". Arguments and errors as `seqzoo.mixers.create`."""
    return registry.create(spec, d_model, depth=depth, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
