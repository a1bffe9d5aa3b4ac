"""RWKV-6 as flash-linear-attention 0.6.0 writes it (fla-hub/rwkv6-*); the authors' own files have other names."""

import numpy as np

from seqzoo.convert.checkpoint import Config
from seqzoo.convert.family import Plan, family, prefixed
from seqzoo.convert.fla import backbone_of
from seqzoo.convert.rules import Rule, keep, matrix, one_less

ORDER = ["rwkvg".index(name) for name in "wkvrg"]  # of the five blended inputs: theirs, ours
SCALE_AND_BIAS = {"weight": "scale", "bias": "bias"}


@family("rwkv6")
def rwkv6(config: Config) -> Plan:
    """Pre-norm blocks of time mixing and channel mixing; the embedding has a norm, kept in the first block."""
    config.only("hidden_act", "sqrelu")
    config.only("norm_bias", True)
    d_model, heads, eps = config.get("hidden_size"), config.get("num_heads", 4), float(config.get("norm_eps", 1e-5))
    mix_rank, decay_rank = config.get("proj_low_rank_dim", 32), config.get("gate_low_rank_dim", 64)
    ratio = config.get("hidden_ratio", 3.5)
    hidden = 32 * ((int(d_model * (3.5 if ratio is None else ratio)) + 31) // 32)
    hidden = config.get("intermediate_size", None) or hidden
    spec = f"rwkv6(heads={heads}, expand_k={config.get('expand_k', 0.5)}, expand_v={config.get('expand_v', 1.0)}, "
    spec += f"mix_rank={mix_rank}, decay_rank={decay_rank}, eps={eps})"
    model, tensors = backbone_of(config, spec)
    model |= {"channel": f"rwkv(expansion={hidden / d_model})", "norm": "layer", "norm_eps": eps}
    tensors["model.norm.bias"] = keep("norm.bias")
    if config.get("norm_first", True):
        model["embedding_norm"] = True
        tensors |= {f"model.layers.0.pre_norm.{theirs}": keep(f"embedding_norm.{ours}") for theirs, ours in SCALE_AND_BIAS.items()}
    norms = {"attn_norm": "mixer_norm", "ffn_norm": "channel_norm", "attn.g_norm": "mixer.norm"}
    layer = {f"{norm}.{a}": keep(f"{ours}.{b}") for norm, ours in norms.items() for a, b in SCALE_AND_BIAS.items()}
    layer |= prefixed("attn.", _time_mixing()) | prefixed("ffn.", _channel_mixing())
    return Plan(model, tensors, tuple(prefixed(f"model.layers.{i}.", layer) for i in range(model["depth"])))


def _time_mixing() -> dict[str, Rule]:
    names = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
    return {
        "x_proj.0.mu": keep("mixer.blend.base"),
        "x_proj.0.linear.weight": Rule(("mixer.blend.down.w",), lambda x: (_five(x).reshape(x.shape).T,)),
        "x_proj.2.weight": Rule(("mixer.blend.up",), lambda x: (_five(x.T),)),
        "x_bias": Rule(("mixer.blend.starts",), lambda x: (x[ORDER],)),
        **{f"{theirs}_proj.linear.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()},
        "w_proj.linear.lora.0.weight": matrix("mixer.decay_down.w"),
        "w_proj.linear.lora.2.weight": matrix("mixer.decay_up.w"),
        "w_proj.linear.lora.2.bias": keep("mixer.decay"),
        "bonus": keep("mixer.bonus"),
        "o_proj.weight": matrix("mixer.out.w"),
    }


def _channel_mixing() -> dict[str, Rule]:
    return {
        "key.mu": one_less("channel.mix_key"),
        "key.linear.weight": matrix("channel.key.w"),
        "receptance.mu": one_less("channel.mix_receptance"),
        "receptance.linear.weight": matrix("channel.receptance.w"),
        "value.weight": matrix("channel.value.w"),
    }


def _five(x: np.ndarray) -> np.ndarray:
    """[5 rank, d] -> [5, rank, d], the inputs in our order."""
    return x.reshape(len(ORDER), -1, x.shape[-1])[ORDER]
