"""The zoo: every mixer, by name.

`create("gla(heads=4)", d_model, rngs=rngs)` builds one from a spec string; the classes can be used directly as well.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.attention.sigmoid import Sigmoid
from seqzoo.mixers.attention.softmax import Softmax
from seqzoo.mixers.base import Mixer, memory_bytes, register, registry, state_bytes
from seqzoo.mixers.convolution.base_conv import BaseConv
from seqzoo.mixers.delta_rule.comba import Comba
from seqzoo.mixers.delta_rule.deltanet import DeltaNet
from seqzoo.mixers.delta_rule.gated_deltanet import GatedDeltaNet
from seqzoo.mixers.delta_rule.gated_deltaproduct import GatedDeltaProduct
from seqzoo.mixers.delta_rule.kda import KimiDeltaAttention
from seqzoo.mixers.linear_attention.aaren import Aaren
from seqzoo.mixers.linear_attention.based import Based
from seqzoo.mixers.linear_attention.flow import FlowAttention
from seqzoo.mixers.linear_attention.gla import GatedLinearAttention
from seqzoo.mixers.linear_attention.gsa import GatedSlotAttention
from seqzoo.mixers.linear_attention.hgrn2 import HGRN2
from seqzoo.mixers.linear_attention.lightning import LightningAttention
from seqzoo.mixers.linear_attention.linear import LinearAttention
from seqzoo.mixers.linear_attention.mlstm import MLSTM
from seqzoo.mixers.linear_attention.norm_attention import NormAttention
from seqzoo.mixers.linear_attention.retnet import RetNet
from seqzoo.mixers.linear_attention.simple_gla import SimpleGatedLinearAttention
from seqzoo.mixers.recurrent.hgrn import HGRN
from seqzoo.mixers.recurrent.min_gru import MinGRU
from seqzoo.mixers.recurrent.min_lstm import MinLSTM
from seqzoo.mixers.recurrent.qlstm import QLSTM
from seqzoo.mixers.recurrent.rg_lru import RGLRU
from seqzoo.mixers.rwkv.rwkv4 import RWKV4
from seqzoo.mixers.rwkv.rwkv6 import RWKV6
from seqzoo.mixers.rwkv.rwkv7 import RWKV7
from seqzoo.mixers.state_space.lru import LRU
from seqzoo.mixers.state_space.mamba import Mamba
from seqzoo.mixers.state_space.mamba2 import Mamba2
from seqzoo.mixers.state_space.mega_ema import MegaEMA
from seqzoo.mixers.state_space.s4d import S4D
from seqzoo.mixers.state_space.s5 import S5
from seqzoo.nn.layer import Depth
from seqzoo.specs import Settings, Spec

__all__ = [
    "HGRN",
    "HGRN2",
    "LRU",
    "MLSTM",
    "QLSTM",
    "RGLRU",
    "RWKV4",
    "RWKV6",
    "RWKV7",
    "S4D",
    "S5",
    "Aaren",
    "BaseConv",
    "Based",
    "Comba",
    "DeltaNet",
    "FlowAttention",
    "GatedDeltaNet",
    "GatedDeltaProduct",
    "GatedLinearAttention",
    "GatedSlotAttention",
    "KimiDeltaAttention",
    "LightningAttention",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "MegaEMA",
    "MinGRU",
    "MinLSTM",
    "Mixer",
    "NormAttention",
    "RetNet",
    "Sigmoid",
    "SimpleGatedLinearAttention",
    "Softmax",
    "create",
    "memory_bytes",
    "names",
    "register",
    "registry",
    "state_bytes",
]

names = registry.names


def create(
    spec: str | Spec | Settings,
    d_model: int,
    *,
    depth: Depth | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Mixer:
    """Builds the mixer that a spec string names.

    Args:
      spec: a name with optional settings, "gla" or "gla(heads=4, expand_v=2)"; or typed settings,
        `GatedLinearAttention.Settings(heads=4)`.
      d_model: width of its input and output.
      depth: (index, count) of the layer, for mixers whose initialisation depends on depth; the index may be traced.
      dtype: of the computation; None promotes inputs and parameters.
      param_dtype: of the parameters.
      rngs: where the initial parameters come from.
    Raises:
      SpecError: unknown name or setting, with the nearest known; a value out of range.
      ValueError: settings that do not fit d_model or each other.
    """
    return registry.create(spec, d_model, depth=depth, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
