"""MiniMax-01's architecture (transformers' MiniMaxForCausalLM): lightning attention between layers of softmax attention.

One expert only: the released model has 32, and we have no mixture of experts.
"""

from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.family import Plan, family, prefixed, rotary
from seqzoo.convert.rules import Rule, copy_of, flat, interleaved, keep, matrix, without_effect

# Kinds of training loss and speed; the largest position is not enforced, there or here.
WITHOUT_EFFECT = (
    "attention_dropout",
    "block_size",
    "max_position_embeddings",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
)
FACTORS = ("linear_attn", "full_attn", "mlp")  # what a branch is added to has a factor alpha, the branch a factor beta


@family("minimax")
def minimax(config: Config) -> Plan:
    """Blocks in which branches are added to their norm's output, alpha of it."""
    config.only("hidden_act", "silu")
    config.only("num_local_experts", 1)
    config.only("sliding_window", None)
    d_model, heads, depth = config.get("hidden_size"), config.get("num_attention_heads"), config.get("num_hidden_layers")
    width = config.get("head_dim", None) or d_model // heads
    kv_heads = config.get("num_key_value_heads", None) or heads
    base, _ = rotary(config, base=1e6)
    specs = {
        "linear_attention": f"lightning(heads={heads}, head_width={width})",
        "full_attention": f"softmax(heads={heads}, kv_heads={kv_heads}, head_width={width}, rope_base={base})",
    }
    kinds = config.get("layer_types")
    if len(kinds) != depth or not set(kinds) <= set(specs):
        raise ConvertError(f"{config.where}: layer_types={kinds!r}, wanted {depth} of {' and '.join(map(repr, specs))}")
    tied = config.get("tie_word_embeddings", False)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": d_model,
        "layers": tuple(specs[kind] for kind in shortest_period(kinds)),
        "depth": depth,
        "channel": f"swiglu(hidden={config.get('intermediate_size')})",
        "norm_eps": config.get("rms_norm_eps", 1e-5),
        "normed_residual": True,
        "residual_scale": _alpha(config),
        "tied": tied,
    }
    tensors = {
        "model.embed_tokens.weight": keep("embedding"),
        "model.norm.weight": keep("norm.scale"),
        "lm_head.weight": copy_of("model.embed_tokens.weight") if tied else matrix("head.w"),
    }
    shared = {
        "input_layernorm.weight": keep("mixer_norm.scale"),
        "post_attention_layernorm.weight": keep("channel_norm.scale"),
        "block_sparse_moe.gate.weight": without_effect(),  # it chooses among one
        "block_sparse_moe.experts.0.w1.weight": matrix("channel.gate.w"),
        "block_sparse_moe.experts.0.w3.weight": matrix("channel.up.w"),
        "block_sparse_moe.experts.0.w2.weight": matrix("channel.down.w"),
    }
    rules = {"linear_attention": _lightning(heads), "full_attention": _softmax()}
    layers = (prefixed(f"model.layers.{i}.", shared | rules[kind]) for i, kind in enumerate(kinds))
    config.ignore(*WITHOUT_EFFECT)
    return Plan(model, tensors, tuple(layers))


def _lightning(heads: int) -> dict[str, Rule]:
    return {
        "self_attn.qkv_proj.weight": interleaved(heads, *(matrix(f"mixer.{name}.w") for name in "qkv")),
        "self_attn.output_gate.weight": matrix("mixer.r.w"),
        "self_attn.norm.weight": keep("mixer.norm.scale"),
        "self_attn.out_proj.weight": matrix("mixer.out.w"),
        "self_attn.slope_rate": flat("mixer.slopes"),
        **{f"self_attn.{name}_decay": without_effect() for name in ("query", "key", "diagonal")},  # powers of the slopes
    }


def _softmax() -> dict[str, Rule]:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}
    return {f"self_attn.{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()}


def _alpha(config: Config) -> float:
    """The one alpha; as in the released model, all are equal and betas are 1."""
    alphas = [config.get(f"{name}_alpha_factor", 1) for name in FACTORS]
    for name in FACTORS:
        config.only(f"{name}_beta_factor", 1)
    if len(set(alphas)) > 1:
        found = ", ".join(f"{name}_alpha_factor={alpha}" for name, alpha in zip(FACTORS, alphas, strict=True))
        raise ConvertError(f"{config.where}: {found}: only equal ones are supported")
    return float(alphas[0])


def shortest_period(kinds: list[str]) -> list[str]:
    """The shortest pattern that gives `kinds` when it is cycled."""
    return next(kinds[:n] for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
