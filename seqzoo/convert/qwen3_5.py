"""Qwen3.5 (Qwen/Qwen3.5-*, Qwen3.6-27B): Gated DeltaNet between layers of gated softmax attention.

Released models also read images. Of these the text model is read.
"""

from seqzoo.convert.architecture import ModelMapping, architecture, rotary
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.hybrid import SWIGLU, attention, layer_types, stack_mapping
from seqzoo.convert.tensor_map import Rule, add_one, conv_kernel, copy, interleaved, matrix, ravel, split

# Training, precision of a state, and a head that predicts further tokens; the largest position is not enforced, there or here.
WITHOUT_EFFECT = (
    "attention_dropout",
    "mamba_ssm_dtype",
    "max_position_embeddings",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
)
OF_OTHER_PARTS = (
    "image_token_id",
    "language_model_only",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
)
OTHER_PARTS = ("model.visual.", "mtp.")  # tensors for images, and of the head that predicts further tokens
OF_IMAGES = ("mrope_interleaved", "mrope_section")  # channels per image coordinate; text has one coordinate
NORMS = {"input_layernorm.weight": add_one("mixer_norm.scale"), "post_attention_layernorm.weight": add_one("channel_norm.scale")}


@architecture("qwen3_5", "Qwen3_5ForConditionalGeneration")
def qwen3_5(config: Config) -> ModelMapping:
    """The text model of one that also reads images."""
    config.ignore(*OF_OTHER_PARTS)
    text = config.section("text_config")
    config.only("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return _text_model(text, "model.language_model.")


@architecture("qwen3_5_text", "Qwen3_5ForCausalLM")
def qwen3_5_text(config: Config) -> ModelMapping:
    """The text model alone."""
    return _text_model(config, "model.")


def _text_model(config: Config, prefix: str) -> ModelMapping:
    """Pre-norm blocks; norms store scale - 1, except the output norm of Gated DeltaNet."""
    config.only("hidden_act", "silu")
    config.only("mlp_only_layers", [], None)
    config.only("output_gate_type", "swish", "silu")
    config.only("attn_output_gate", True)
    d_model, depth, eps = config.get("hidden_size"), config.get("num_hidden_layers"), config.get("rms_norm_eps", 1e-6)
    heads, kv_heads = config.get("num_attention_heads", 16), config.get("num_key_value_heads", 4)
    width, bias = config.get("head_dim", 256), config.get("attention_bias", False)
    base, fraction = rotary(config, base=10000.0, fraction=0.25, without_effect=OF_IMAGES)
    key_heads, value_heads = config.get("linear_num_key_heads", 16), config.get("linear_num_value_heads", 32)
    keys = key_heads * config.get("linear_key_head_dim", 128)
    values = value_heads * config.get("linear_value_head_dim", 128)
    gated_deltanet = f"gated_deltanet(heads={value_heads}, key_heads={key_heads}, expand_k={keys / d_model}, "
    gated_deltanet += f"expand_v={values / d_model}, conv_size={config.get('linear_conv_kernel_dim', 4)}, norm_eps={eps})"
    softmax = f"softmax(heads={heads}, kv_heads={kv_heads}, head_dim={width}, rope_theta={base}, "
    softmax += f"rope_dim={int(width * fraction)}, qk_norm='rms', qk_norm_eps={eps}, output_gate=True, bias={bias})"
    specs = {"linear_attention": gated_deltanet, "full_attention": softmax}
    rules = {
        "linear_attention": NORMS | SWIGLU | _gated_deltanet(keys, values),
        "full_attention": NORMS | SWIGLU | _softmax(heads, bias),
    }
    interval = config.get("full_attention_interval", 4)
    default = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(depth)]
    config.ignore(*WITHOUT_EFFECT)
    kinds = layer_types(config, tuple(specs), default)
    made = stack_mapping(config, kinds, specs, rules, norm_eps=eps, scale=add_one, prefix=prefix)
    return made._replace(skipped=OTHER_PARTS)


def _gated_deltanet(keys: int, values: int) -> dict[str, Rule]:
    """Gated DeltaNet with one projection and one convolution for q, k and v."""
    sizes, names = (keys, keys, values), {"in_proj_z": "gate", "in_proj_b": "beta", "in_proj_a": "decay_in", "out_proj": "out"}
    return {
        "linear_attn.in_proj_qkv.weight": split(sizes, *(matrix(f"mixer.{name}.w") for name in "qkv")),
        "linear_attn.conv1d.weight": split(sizes, *(conv_kernel(f"mixer.{name}_convolution.w") for name in "qkv")),
        **{f"linear_attn.{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()},
        "linear_attn.A_log": ravel("mixer.decay.a_log"),
        "linear_attn.dt_bias": ravel("mixer.decay.bias"),
        "linear_attn.norm.weight": copy("mixer.norm.scale"),
    }


def _softmax(heads: int, bias: bool) -> dict[str, Rule]:
    """Softmax attention with an output gate; for each head, rows of the query precede rows of the gate."""
    rules = attention(bias) | {
        "self_attn.q_proj.weight": interleaved(heads, matrix("mixer.q.w"), matrix("mixer.gate.w")),
        **{f"self_attn.{name}_norm.weight": add_one(f"mixer.{name}_norm.scale") for name in "qk"},
    }
    return rules | ({"self_attn.q_proj.bias": interleaved(heads, copy("mixer.q.b"), copy("mixer.gate.b"))} if bias else {})
