"""RWKV-6 as flash-linear-attention 0.6.0 writes it (fla-hub/rwkv6-*); the authors' own files have other names."""

from collections.abc import Sequence

import numpy as np

from seqzoo.convert.architecture import FLA, ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.fla import backbone_mapping
from seqzoo.convert.tensor_map import Rule, copy, matrix, one_minus

ORDER = ["rwkvg".index(name) for name in "wkvrg"]  # of the five blended inputs: theirs, ours
SCALE_AND_BIAS = {"weight": "scale", "bias": "bias"}


@architecture("rwkv6", "RWKV6ForCausalLM", FLA)
def rwkv6(config: Config) -> ModelMapping:
    """Blocks of RWKV-6's time mixing and channel mixing."""
    mix_rank, decay_rank = config.get("proj_low_rank_dim", 32), config.get("gate_low_rank_dim", 64)
    spec = f"rwkv6(heads={config.get('num_heads', 4)}, expand_k={config.get('expand_k', 0.5)}, "
    spec += f"expand_v={config.get('expand_v', 1.0)}, mix_rank={mix_rank}, decay_rank={decay_rank}, eps={rwkv_eps(config)})"
    channel = f"rwkv(expansion={expansion(config, 3.5)})"
    layer = prefixed("attn.", _time_mixing()) | prefixed("ffn.", _channel_mixing())
    return rwkv_stack(config, spec, channel, [layer] * config.get("num_hidden_layers"))


def rwkv_stack(config: Config, spec: str, channel: str, layers: Sequence[dict[str, Rule]]) -> ModelMapping:
    """Mapping of RWKV-6 and RWKV-7: pre-norm blocks, norms with a bias, one of them after the embedding.

    Args:
      spec, channel: of the mixer and the channel mixer; `layers`: rules for `attn` and `ffn` of each layer, without norms.
    """
    config.only("hidden_act", "sqrelu")
    config.only("norm_bias", True)
    model, tensors = backbone_mapping(config, spec)
    model |= {"channel": channel, "norm": "layer", "norm_eps": rwkv_eps(config)}
    tensors["model.norm.bias"] = copy("norm.bias")
    if config.get("norm_first", True):
        model["embedding_norm"] = True
        tensors |= {f"model.layers.0.pre_norm.{theirs}": copy(f"embedding_norm.{ours}") for theirs, ours in SCALE_AND_BIAS.items()}
    norms = {"attn_norm": "mixer_norm", "ffn_norm": "channel_norm", "attn.g_norm": "mixer.norm"}
    norms = {f"{norm}.{a}": copy(f"{ours}.{b}") for norm, ours in norms.items() for a, b in SCALE_AND_BIAS.items()}
    return ModelMapping(model, tensors, tuple(prefixed(f"model.layers.{i}.", norms | layer) for i, layer in enumerate(layers)))


def rwkv_eps(config: Config) -> float:
    """Epsilon of the blocks' norms."""
    return float(config.get("norm_eps", 1e-5))


def expansion(config: Config, ratio: float) -> float:
    """Hidden width of the channel mixer over d_model; unless it is given, the ratio rounded up to a multiple of 32 channels."""
    d_model, given = config.get("hidden_size"), config.get("hidden_ratio", ratio)
    hidden = 32 * ((int(d_model * (ratio if given is None else given)) + 31) // 32)
    return (config.get("intermediate_size", None) or hidden) / d_model


def _time_mixing() -> dict[str, Rule]:
    names = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    return {
        "x_proj.0.mu": copy("mixer.blend.base"),
        "x_proj.0.linear.weight": Rule(("mixer.blend.down.w",), lambda x: (_five(x).reshape(x.shape).T,)),
        "x_proj.2.weight": Rule(("mixer.blend.up",), lambda x: (_five(x.T),)),
        "x_bias": Rule(("mixer.blend.starts",), lambda x: (x[ORDER],)),
        **{f"{theirs}_proj.linear.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()},
        "w_proj.linear.lora.0.weight": matrix("mixer.decay.down.w"),
        "w_proj.linear.lora.2.weight": matrix("mixer.decay.up.w"),
        "w_proj.linear.lora.2.bias": copy("mixer.decay.bias"),
        "bonus": copy("mixer.bonus"),
        "o_proj.weight": matrix("mixer.out.w"),
    }


def _channel_mixing() -> dict[str, Rule]:
    return {
        "key.mu": one_minus("channel.mix_key"),
        "key.linear.weight": matrix("channel.key.w"),
        "receptance.mu": one_minus("channel.mix_receptance"),
        "receptance.linear.weight": matrix("channel.receptance.w"),
        "value.weight": matrix("channel.value.w"),
    }


def _five(x: np.ndarray) -> np.ndarray:
    """[5 rank, d] -> [5, rank, d], the inputs in our order."""
    return x.reshape(len(ORDER), -1, x.shape[-1])[ORDER]
