"""OLMo Hybrid (allenai/Olmo-Hybrid-*; transformers' OlmoHybridForCausalLM): Gated DeltaNet between layers of softmax attention."""

from seqzoo.convert.architecture import ModelMapping, architecture, rotary
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.hybrid import SWIGLU, attention, layer_types, shortest_period, stack_mapping
from seqzoo.convert.tensor_map import Rule, conv_kernel, copy, matrix, ravel

# Training and initialisation; the largest position is not enforced, there or here.
WITHOUT_EFFECT = (
    "attention_dropout",
    "linear_a_log_max",
    "linear_a_log_min",
    "linear_dt_init_floor",
    "linear_dt_max",
    "linear_dt_min",
    "max_position_embeddings",
)
OUTPUT_NORM_EPS = 1e-5  # of the output norm, for any rms_norm_eps
NORM_POSITION = {"linear_attention": "pre", "full_attention": "post"}
LINEAR = {"q": "q", "k": "k", "v": "v", "g": "gate", "a": "decay_in", "b": "beta", "o": "out"}


@architecture("olmo_hybrid", "OlmoHybridForCausalLM")
def olmo_hybrid(config: Config) -> ModelMapping:
    """Blocks of Gated DeltaNet with norms before their branches, and blocks of attention with norms after them."""
    config.only("hidden_act", "silu")
    config.only("linear_use_gate", True)
    d_model, depth, eps = config.get("hidden_size"), config.get("num_hidden_layers"), config.get("rms_norm_eps", 1e-6)
    heads = config.get("num_attention_heads")
    kv_heads, width = config.get("num_key_value_heads", None) or heads, config.get("head_dim", None) or d_model // heads
    bias = config.get("attention_bias", False)
    value_heads = config.get("linear_num_value_heads", None) or heads
    key_heads = config.get("linear_num_key_heads", None) or heads
    key_width = config.get("linear_key_head_dim", None) or int(0.75 * d_model / key_heads)
    keys, values = key_heads * key_width, value_heads * (config.get("linear_value_head_dim", None) or 2 * key_width)
    gated_deltanet = f"gated_deltanet(heads={value_heads}, key_heads={key_heads}, expand_k={keys / d_model}, "
    gated_deltanet += f"expand_v={values / d_model}, conv_size={config.get('linear_conv_kernel_dim', 4)}, "
    gated_deltanet += f"negative_eigenvalues={config.get('linear_allow_neg_eigval', True)}, norm_eps={OUTPUT_NORM_EPS})"
    softmax = f"softmax(heads={heads}, kv_heads={kv_heads}, head_dim={width}, rope_theta={_rope_theta(config)}, "
    softmax += f"qk_norm='rms', joint_qk_norm=True, qk_norm_eps={eps}, bias={bias})"
    specs = {"linear_attention": gated_deltanet, "full_attention": softmax}
    rules = {"linear_attention": SWIGLU | _gated_deltanet(keys, values), "full_attention": SWIGLU | _softmax(bias)}
    default = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(depth)]
    kinds = layer_types(config, tuple(specs), default if depth > 3 else [*default[:-1], "full_attention"])
    config.ignore(*WITHOUT_EFFECT)
    made = stack_mapping(config, kinds, specs, rules, norm_eps=eps)
    return made._replace(model={**made.model, "norm_position": tuple(NORM_POSITION[kind] for kind in shortest_period(kinds))})


def _rope_theta(config: Config) -> float | None:
    """The base of rotary positions; null: None, no positions; absent: 10000."""
    settings = config.get("rope_parameters", None) or {}
    base = settings.get("rope_theta", config.get("rope_theta", 10000.0))
    return None if base is None else rotary(config, base=base)[0]


def _gated_deltanet(keys: int, values: int) -> dict[str, Rule]:
    widths = {"q": keys, "k": keys, "v": values}
    return {
        "attention_layer_norm.weight": copy("mixer_norm.scale"),
        "feedforward_layer_norm.weight": copy("channel_norm.scale"),
        **{f"linear_attn.{theirs}_proj.weight": matrix(f"mixer.{ours}.w") for theirs, ours in LINEAR.items()},
        **{f"linear_attn.{name}_conv1d.weight": _conv_kernel(f"mixer.{name}_convolution.w", widths[name]) for name in widths},
        "linear_attn.A_log": ravel("mixer.decay.a_log"),
        "linear_attn.dt_bias": ravel("mixer.decay.bias"),
        "linear_attn.o_norm.weight": copy("mixer.norm.scale"),
    }


def _softmax(bias: bool) -> dict[str, Rule]:
    return attention(bias) | {
        "post_attention_layernorm.weight": copy("mixer_norm.scale")._replace(alias="feedforward_layer_norm.weight"),
        "post_feedforward_layernorm.weight": copy("channel_norm.scale"),
        **{f"self_attn.{name}_norm.weight": copy(f"mixer.{name}_norm.scale") for name in "qk"},
    }


def _conv_kernel(target: str, width: int) -> Rule:
    """The kernel of one of three convolutions, which transformers 5.23 joins, and saves as thirds: right for equal widths only."""

    def make(x):
        if len(x) != width:
            raise ValueError(f"wanted {width} channels; transformers saves thirds of all three kernels")
        return conv_kernel(target).make(x)

    return Rule((target,), make)
