"""Channel mixers: the half of a block that works on channels. Same signature as a mixer, and their own registry."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from seqzoo.channels.base import ChannelMixer, register, registry
from seqzoo.channels.mlp import GeGLU, GeluMLP, SwiGLU
from seqzoo.channels.rwkv import RWKVChannelMix
from seqzoo.nn.layer import Depth
from seqzoo.specs import Settings, Spec

__all__ = ["ChannelMixer", "GeGLU", "GeluMLP", "RWKVChannelMix", "SwiGLU", "create", "register", "registry"]


def create(
    spec: str | Spec | Settings,
    d_model: int,
    *,
    depth: Depth | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> ChannelMixer | None:
    """Builds the channel mixer that a spec string names, None for "none". Arguments and errors as `seqzoo.mixers.create`."""
    spec = registry.check(spec)
    if spec.name == "none":
        return None
    return registry.create(spec, d_model, depth=depth, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
