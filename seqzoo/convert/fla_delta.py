"""Delta rules of flash-linear-attention 0.6.0 (fla-hub/delta_net-*, ...): DeltaNet, Gated DeltaNet, Comba, DeltaProduct, KDA."""

from typing import Any

import numpy as np

from seqzoo.convert.architecture import FLA, ModelMapping, architecture
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.fla import eps_of, projections, stack_mapping
from seqzoo.convert.tensor_map import Rule, conv_kernel, copy, joined, matrix
from seqzoo.specs import Spec

GATE = {"g_proj.weight": matrix("mixer.gate.w")}
DECAY = {"A_log": copy("mixer.decay.a_log"), "dt_bias": copy("mixer.decay.bias")}
DECAY_OF_HEADS = DECAY | {"a_proj.weight": matrix("mixer.decay_in.w")}


@architecture("delta_net", "DeltaNetForCausalLM", FLA)
def delta_net(config: Config) -> ModelMapping:
    """Blocks of DeltaNet, without an output gate."""
    config.only("use_gate", False)
    config.only("use_beta", True)
    config.only("qk_norm", "l2")
    config.only("qk_activation", "silu")
    config.ignore("use_output_norm")  # passed on there, and never read
    widths = {"heads": config.get("num_heads", 16)} | {name: config.get(name, 1.0) for name in ("expand_k", "expand_v")}
    return _mapping(config, "deltanet", {}, **widths, **_range(config))


@architecture("gated_deltanet", "GatedDeltaNetForCausalLM", FLA)
def gated_deltanet(config: Config) -> ModelMapping:
    """Blocks of Gated DeltaNet."""
    config.only("use_gate", True)
    config.only("output_gate_activation", "swish", "silu")
    return _mapping(config, "gated_deltanet", GATE | DECAY_OF_HEADS, **_widths(config, 6, 256, 2.0), **_range(config))


@architecture("comba", "CombaForCausalLM", FLA)
def comba(config: Config) -> ModelMapping:
    """Blocks of Comba. Its p = sigmoid(decay) k is normalised again, so the factor acts in q - D p only."""
    config.only("use_output_gate", True)
    config.ignore("use_output_correction", "use_inner_decay", "correction_factor")  # stored there; its block does not hand them on
    correction = joined("mixer.query_correction", ("D", "decay"), lambda x: x[0] * _sigmoid(x[1]))
    settings = _widths(config, 6, 256, 2.0) | {"feedback": False}
    return _mapping(config, "comba", GATE | DECAY_OF_HEADS | correction, **settings)


@architecture("gated_deltaproduct", "GatedDeltaProductForCausalLM", FLA)
def gated_deltaproduct(config: Config) -> ModelMapping:
    """Blocks of DeltaProduct, with or without a decay; of a projection's rows the first are those of a token's first step."""
    config.only("use_output_gate", True)
    forget = config.get("use_forget_gate", False)
    settings = _widths(config, 6, 256, 2.0) | {"steps": config.get("num_householder", 1), "forget": forget}
    return _mapping(config, "gated_deltaproduct", GATE | (DECAY_OF_HEADS if forget else {}), **settings, **_range(config))


@architecture("kda", "KDAForCausalLM", FLA)
def kda(config: Config) -> ModelMapping:
    """Blocks of Kimi delta attention; the inner width of the gates is that of a head's values, there and here."""
    config.only("safe_gate", False)
    config.only("lower_bound", None)
    low_rank = {
        "f_proj.0.weight": matrix("mixer.decay_in.down.w"),
        "f_proj.1.weight": matrix("mixer.decay_in.up.w"),
        "g_proj.0.weight": matrix("mixer.gate.down.w"),
        "g_proj.1.weight": matrix("mixer.gate.up.w"),
        "g_proj.1.bias": copy("mixer.gate.bias"),
    }
    settings = _widths(config, 16, 128, 1.0) | {"gate_bias": True}
    return _mapping(config, "kda", low_rank | DECAY, **settings, **_range(config))


def _mapping(config: Config, name: str, mixer: dict[str, Rule], **settings: Any) -> ModelMapping:
    """Mapping of layers with convolutions of q, k and v, a beta, and a norm per head."""
    config.only("use_short_conv", True)
    settings |= {"conv_size": config.get("conv_size", 4), "norm_eps": eps_of(config)}
    shared = projections("qkv") | {f"{x}_conv1d.weight": conv_kernel(f"mixer.{x}_convolution.w") for x in "qkv"}
    shared |= {"b_proj.weight": matrix("mixer.beta.w"), "o_norm.weight": copy("mixer.norm.scale")}
    return stack_mapping(config, str(Spec(name, tuple(settings.items()))), shared | mixer)


def _widths(config: Config, heads: int, width: int, expand_v: float) -> dict[str, Any]:
    """Widths as fractions of d_model, from widths per head there; the arguments are defaults of absent settings."""
    heads, width = config.get("num_heads", heads), config.get("head_dim", width)
    config.only("num_v_heads", None, heads)
    values, d_model = int(width * config.get("expand_v", expand_v)), config.get("hidden_size")
    return {"heads": heads, "expand_k": heads * width / d_model, "expand_v": heads * values / d_model}


def _range(config: Config) -> dict[str, bool]:
    """The factor 2 on beta, which allows negative eigenvalues."""
    return {"negative_eigenvalues": config.get("allow_neg_eigval", False)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.promote_types(x.dtype, np.float32))))
