"""Kimi Linear (moonshotai/Kimi-Linear-*; transformers' KimiLinearForCausalLM): layers of Kimi delta attention.

Released models have multi-head latent attention in other layers, and mixtures of experts. Neither exists here; of such a model
only the layers of Kimi delta attention can be read.
"""

from collections.abc import Sequence
from typing import Any

from seqzoo.convert.architecture import ModelMapping, architecture
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.hybrid import SWIGLU, layer_types, stack_mapping
from seqzoo.convert.tensor_map import Rule, conv_kernel, copy, matrix, ravel

# Training, and names of files; the largest position is not enforced, there or here.
WITHOUT_EFFECT = ("max_position_embeddings", "model_max_length", "num_nextn_predict_layers", "pretraining_tp")
OF_LATENT_ATTENTION = (
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "kv_lora_rank",
    "mla_use_nope",
    "num_attention_heads",
    "num_key_value_heads",
    "q_lora_rank",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rope_scaling",
    "rope_theta",
    "v_head_dim",
)
OF_EXPERTS = (
    "moe_intermediate_size",
    "moe_layer_freq",
    "moe_renormalize",
    "moe_router_activation_func",
    "n_group",
    "n_shared_experts",
    "norm_topk_prob",
    "num_expert_group",
    "num_experts",
    "num_experts_per_tok",
    "num_experts_per_token",
    "num_local_experts",
    "num_shared_experts",
    "output_router_logits",
    "routed_scaling_factor",
    "topk_group",
    "use_grouped_topk",
)
OF_LINEAR = ("full_attn_layers", "head_dim", "kda_layers", "num_heads", "short_conv_kernel_size")
PROJECTIONS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "f_a_proj": "decay_in.down",
    "f_b_proj": "decay_in.up",
    "g_a_proj": "gate.down",
    "g_b_proj": "gate.up",
    "b_proj": "beta",
    "o_proj": "out",
}


@architecture("kimi_linear", "KimiLinearForCausalLM")
def kimi_linear(config: Config) -> ModelMapping:
    """Pre-norm blocks of Kimi delta attention. Settings of other layers have no effect on them."""
    config.only("hidden_act", "silu")
    config.only("tie_word_embeddings", False)  # transformers ties nothing, for any value
    d_model, eps, linear = config.get("hidden_size"), config.get("rms_norm_eps", 1e-5), _linear(config)
    heads = linear.get("num_heads", config.get("linear_num_heads", 32))
    width = linear.get("head_dim", config.get("linear_head_dim", 128))
    conv_size = linear.get("short_conv_kernel_size", config.get("linear_conv_kernel_dim", 4))
    kda = f"kda(heads={heads}, expand_k={heads * width / d_model}, expand_v={heads * width / d_model}, "
    specs = {"linear_attention": f"{kda}conv_size={conv_size}, norm_eps={eps})", "full_attention": None}
    kinds = layer_types(config, tuple(specs), _default_kinds(config.get("num_hidden_layers"), linear))
    config.ignore(*WITHOUT_EFFECT, *OF_LATENT_ATTENTION, *OF_EXPERTS)
    made = stack_mapping(config, kinds, specs, {"linear_attention": _kda(), "full_attention": {}}, norm_eps=eps)
    return made._replace(refused=_refused(config, kinds))


def _linear(config: Config) -> dict[str, Any]:
    """The settings in the released files' own dict, which take precedence over the others."""
    linear = config.get("linear_attn_config", None) or {}
    unknown = {key: value for key, value in linear.items() if key not in OF_LINEAR}
    if unknown:
        raise ConvertError(f"{config.where}: linear_attn_config has unknown settings {unknown!r}; known are {', '.join(OF_LINEAR)}")
    return linear


def _default_kinds(depth: int, linear: dict[str, Any]) -> list[str]:
    """Kind of each layer without layer_types; released files count layers from 1."""
    if not {"full_attn_layers", "kda_layers"} <= set(linear):
        return ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(depth)]
    kinds = {i: "full_attention" for i in linear["full_attn_layers"]} | {i: "linear_attention" for i in linear["kda_layers"]}
    return [kinds.get(i + 1, "") for i in range(depth)]


def _refused(config: Config, kinds: Sequence[str]) -> str | None:
    """The reason if only single mixers can be read, else None."""
    dense = config.get("first_k_dense_replace", 1)
    channels = config.get("mlp_layer_types", None) or ["dense" if i < dense else "sparse" for i in range(len(kinds))]
    latent = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    experts = [i for i, kind in enumerate(channels) if kind == "sparse"]
    found = [f"multi-head latent attention (layer_types 'full_attention') in layers {latent}"] if latent else []
    found += [f"a mixture of experts (mlp_layer_types 'sparse') in layers {experts}"] if experts else []
    if not found:
        return None
    return f"{config.where}: {' and '.join(found)} is not supported; load_mixer reads single layers of Kimi delta attention"


def _kda() -> dict[str, Rule]:
    return {
        "input_layernorm.weight": copy("mixer_norm.scale"),
        "post_attention_layernorm.weight": copy("channel_norm.scale"),
        **{name: rule._replace(alias=name.replace("mlp", "block_sparse_moe")) for name, rule in SWIGLU.items()},
        **{f"self_attn.{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in PROJECTIONS.items()},
        **{f"self_attn.{name}_conv1d.weight": conv_kernel(f"mixer.{name}_convolution.w") for name in "qkv"},
        "self_attn.A_log": ravel("mixer.decay.a_log"),
        "self_attn.dt_bias": ravel("mixer.decay.bias"),
        "self_attn.o_norm.weight": copy("mixer.norm.scale"),
    }
