"""Models of flash-linear-attention 0.6.0 (fla-hub/gla-*, retnet-*, ...): GLA, RetNet, HGRN2 and GSA.

fla_delta.py has its delta rules, rwkv6.py and rwkv7.py those two.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from seqzoo.convert.architecture import FLA, ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.tensor_map import Rule, copy, matrix, tied_to

# Kernels, losses and names of modules; the largest position is not enforced, there or here.
WITHOUT_EFFECT = (
    "attn_mode",
    "fuse_cross_entropy",
    "fuse_linear_cross_entropy",
    "fuse_norm",
    "fuse_swiglu",
    "max_position_embeddings",
    "use_l2warp",
)
NO_BOUND = -1e4  # a logit whose sigmoid is 0 in every dtype, and so are its gradients: finite, and it stays where it is


@architecture("gla", "GLAForCausalLM", FLA)
def gla(config: Config) -> ModelMapping:
    """Blocks of gated linear attention; the gate's rank and temperature are the layer's defaults, there and here."""
    _no_convolutions(config)
    config.only("feature_map", None)
    config.only("clamp_min", None)
    config.ignore("use_gk", "use_gv")  # stored there, and never read
    spec = f"gla({_widths(config, 4, 0.5, 1.0)}, norm_eps={eps_of(config)})"
    gate = {
        "gk_proj.0.weight": matrix("mixer.forget_down.w"),
        "gk_proj.1.weight": matrix("mixer.forget_up.w"),
        "gk_proj.1.bias": copy("mixer.forget_up.b"),
    }
    return stack_mapping(config, spec, projections("qkv") | _gated_norm(config) | gate)


@architecture("retnet", "RetNetForCausalLM", FLA)
def retnet(config: Config) -> ModelMapping:
    """Blocks of retention; the base of its rotary positions is the layer's default, there and here."""
    config.only("feature_map", None)
    config.ignore("use_short_conv", "conv_size")  # stored there; its block does not hand them on
    spec = f"retnet({_widths(config, 8, 1.0, 2.0)}, norm_eps={eps_of(config)})"
    return stack_mapping(config, spec, projections("qkv") | _gated_norm(config), hidden_ratio=2)


@architecture("gsa", "GSAForCausalLM", FLA)
def gsa(config: Config) -> ModelMapping:
    """Blocks of gated slot attention. The norm of the output has an epsilon of 1e-5 there, for any norm_eps."""
    _no_convolutions(config)
    config.only("feature_map", "swish")
    config.ignore("clamp_max", "clamp_min", "use_norm", "use_output_gate")  # stored there, and never read
    config.only("expand_v", 1)  # theirs fails with any other: the norm is as wide as the model
    slots, temperature = config.get("num_slots", 64), config.get("gate_logit_normalizer", 8)
    spec = f"gsa({_widths(config, 4, 1.0, 1.0)}, slots={slots}, gate_temperature={float(temperature)})"
    return stack_mapping(
        config, spec, projections("qkv") | {"f_proj.weight": matrix("mixer.forget.w"), "g_norm.weight": copy("mixer.norm.scale")}
    )


@architecture("hgrn2", "HGRN2ForCausalLM", FLA)
def hgrn2(config: Config) -> ModelMapping:
    """Blocks of HGRN2, each with its lower bound from the table of the model; the epsilon of the norm is as in `gsa`."""
    _no_convolutions(config)
    d_model, depth, width = config.get("hidden_size"), config.get("num_hidden_layers"), config.get("expand_ratio", 128)
    heads = config.get("num_heads", None)
    if width is not None:
        heads = d_model // width  # num_heads is not read then
    if not heads or d_model % heads or width not in (None, d_model // heads):
        found = f"expand_ratio={width!r} and num_heads={config.get('num_heads', None)!r}"
        raise ConvertError(f"{config.where}: {found} are not supported with hidden_size={d_model}, only a divisor of it")
    learned = config.get("use_lower_bound", True)
    names = {"q_proj": "q", "f_proj": "forget", "i_proj": "v", "o_proj": "out"}
    mixer = {f"{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()}
    mixer["g_norm.weight"] = copy("mixer.norm.scale")
    spec = f"hgrn2(heads={heads})" if learned else f"hgrn2(heads={heads}, lower_bound=0.0)"
    table = (lambda i: {"model.lower_bounds": _bound(i, depth)}) if learned else lambda i: {}
    return stack_mapping(config, spec, mixer, table=table)


def stack_mapping(
    config: Config,
    spec: str,
    mixer: Mapping[str, Rule],
    *,
    hidden_ratio: float = 4,
    table: Callable[[int], dict[str, Rule]] = lambda i: {},
) -> ModelMapping:
    """Mapping of pre-norm blocks of a mixer and a SwiGLU, an embedding, a final norm and a head.

    Args:
      spec: of the mixer; `mixer`: its rules, for tensors of one layer's `attn`.
      hidden_ratio: default of hidden_ratio.
      table: rules of layer i for tensors of all layers.
    """
    config.only("hidden_act", "swish")
    config.only("attnres_block_size", None)  # attention over the outputs of earlier layers
    config.only("elementwise_affine", True)
    model, tensors = backbone_mapping(config, spec)
    model |= {"channel": f"swiglu(hidden={_hidden(config, hidden_ratio)})", "norm_eps": eps_of(config)}
    layer = {
        "attn_norm.weight": copy("mixer_norm.scale"),
        "mlp_norm.weight": copy("channel_norm.scale"),
        "mlp.gate_proj.weight": matrix("channel.gate.w"),
        "mlp.up_proj.weight": matrix("channel.up.w"),
        "mlp.down_proj.weight": matrix("channel.down.w"),
        **prefixed("attn.", mixer),
    }
    return ModelMapping(model, tensors, tuple(prefixed(f"model.layers.{i}.", layer) | table(i) for i in range(model["depth"])))


def backbone_mapping(config: Config, spec: str) -> tuple[dict, dict[str, Rule]]:
    """Settings of `LanguageModel` and rules outside the layers that do not depend on the kind of block."""
    config.only("attn", None)  # layers of softmax attention in between
    config.ignore(*WITHOUT_EFFECT)
    tied = config.get("tie_word_embeddings", False)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": config.get("hidden_size"),
        "layers": (spec,),
        "depth": config.get("num_hidden_layers"),
        "tie_embeddings": tied,
    }
    tensors = {
        "model.embeddings.weight": copy("embedding"),
        "model.norm.weight": copy("norm.scale"),
        "lm_head.weight": tied_to("model.embeddings.weight") if tied else matrix("head.w"),
    }
    return model, tensors


def _no_convolutions(config: Config) -> None:
    config.only("use_short_conv", False)
    config.ignore("conv_size", "share_conv_kernel")


def _widths(config: Config, heads: int, expand_k: float, expand_v: float) -> str:
    """Heads and widths in a spec; the arguments are defaults of absent settings. Shared keys and values are refused."""
    config.only("num_kv_heads", None, config.get("num_heads", heads))
    defaults = {"num_heads": heads, "expand_k": expand_k, "expand_v": expand_v}
    return ", ".join(f"{key.removeprefix('num_')}={config.get(key, default)}" for key, default in defaults.items())


def eps_of(config: Config) -> float:
    """Epsilon of the norms. Files of early versions have it under another name, which is no longer read there."""
    eps = float(config.get("norm_eps", 1e-6))
    config.only("rms_norm_eps", eps)
    return eps


def projections(inputs: Sequence[str]) -> dict[str, Rule]:
    """The projections of the named inputs and of the output."""
    return {f"{name}_proj.weight": matrix(f"mixer.{name}.w") for name in inputs} | {"o_proj.weight": matrix("mixer.out.w")}


def _gated_norm(config: Config) -> dict[str, Rule]:
    """The norm of the output and its gate. Fused into one module, the norm has another name."""
    config.only("use_output_gate", True)
    norm = "g_norm_swish_gate" if config.get("fuse_norm", True) else "g_norm"
    return {f"{norm}.weight": copy("mixer.norm.scale"), "g_proj.weight": matrix("mixer.gate.w")}


def _hidden(config: Config, ratio: float) -> int:
    """Hidden width of the SwiGLU: two thirds of ratio * hidden_size, rounded up to a multiple of 256, unless it is given."""
    ratio = config.get("hidden_ratio", ratio)
    width = int(config.get("hidden_size") * (4 if ratio is None else ratio) * 2 / 3)
    return config.get("intermediate_size", None) or 256 * ((width + 255) // 256)


def _bound(layer: int, depth: int) -> Rule:
    """The logits of one layer's bounds: layer i's are the sum over layers 1 to i of a softmax of the table over all layers."""

    def make(table):
        if table.ndim != 2 or len(table) != depth:
            raise ValueError(f"wanted a row for each of {depth} layers")
        weights = np.exp(table.astype(np.float64) - np.max(table, axis=0))
        below, above = weights[1 : layer + 1].sum(0), weights[0] + weights[layer + 1 :].sum(0)
        return (np.log(below) - np.log(above) if layer else np.full(table.shape[1:], NO_BOUND),)

    return Rule(("mixer.bounded.logit",), make)
