"""MiniMax-01's architecture (transformers' MiniMaxForCausalLM): lightning attention between layers of softmax attention.

One expert only: the released model has 32, and mixtures of experts are not supported.
"""

from seqzoo.convert.architecture import ModelMapping, architecture, rotary
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.hybrid import attention, layer_types, stack_mapping
from seqzoo.convert.tensor_map import Rule, copy, interleaved, matrix, ravel, without_effect

# Training loss and speed; the largest position is not enforced, there or here.
WITHOUT_EFFECT = (
    "attention_dropout",
    "block_size",
    "max_position_embeddings",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "shared_moe_mode",  # of shared experts, of which there are none
)
FACTORS = ("linear_attn", "full_attn", "mlp")  # residual + branch is alpha * residual + beta * branch


@architecture("minimax", "MiniMaxForCausalLM")
def minimax(config: Config) -> ModelMapping:
    """Blocks in which a branch is added to alpha times the output of its norm."""
    config.only("hidden_act", "silu")
    config.only("num_local_experts", 1)
    config.only("sliding_window", None)
    config.only("shared_intermediate_size", 0)
    config.only("postnorm", True)
    heads = config.get("num_attention_heads")
    width = config.get("head_dim", None) or config.get("hidden_size") // heads
    config.only("rotary_dim", width)  # transformers rotates whole heads, for any value; MiniMax's own code this many channels
    kv_heads = config.get("num_key_value_heads", None) or heads
    base, _ = rotary(config, base=1e6)
    specs = {
        "linear_attention": f"lightning(heads={heads}, head_dim={width})",
        "full_attention": f"softmax(heads={heads}, kv_heads={kv_heads}, head_dim={width}, rope_theta={base})",
    }
    shared = {
        "input_layernorm.weight": copy("mixer_norm.scale"),
        "post_attention_layernorm.weight": copy("channel_norm.scale"),
        "block_sparse_moe.gate.weight": without_effect(),  # it chooses among one
        "block_sparse_moe.experts.0.w1.weight": matrix("channel.gate.w"),
        "block_sparse_moe.experts.0.w3.weight": matrix("channel.up.w"),
        "block_sparse_moe.experts.0.w2.weight": matrix("channel.down.w"),
    }
    rules = {"linear_attention": shared | _lightning(heads), "full_attention": shared | attention()}
    config.ignore(*WITHOUT_EFFECT)
    made = stack_mapping(config, layer_types(config, tuple(specs)), specs, rules, norm_eps=config.get("rms_norm_eps", 1e-5))
    return made._replace(model={**made.model, "normed_residual": True, "residual_scale": _alpha(config)})


def _lightning(heads: int) -> dict[str, Rule]:
    return {
        "self_attn.qkv_proj.weight": interleaved(heads, *(matrix(f"mixer.{name}.w") for name in "qkv")),
        "self_attn.output_gate.weight": matrix("mixer.gate.w"),
        "self_attn.norm.weight": copy("mixer.norm.scale"),
        "self_attn.out_proj.weight": matrix("mixer.out.w"),
        "self_attn.slope_rate": ravel("mixer.slopes"),
        **{f"self_attn.{name}_decay": without_effect() for name in ("query", "key", "diagonal")},  # powers of the slopes
    }


def _alpha(config: Config) -> float:
    """The alpha of all branches, which are equal in the released model; betas must be 1."""
    alphas = [config.get(f"{name}_alpha_factor", 1) for name in FACTORS]
    for name in FACTORS:
        config.only(f"{name}_beta_factor", 1)
    if len(set(alphas)) > 1:
        found = ", ".join(f"{name}_alpha_factor={alpha}" for name, alpha in zip(FACTORS, alphas, strict=True))
        raise ConvertError(f"{config.where}: {found}: only equal ones are supported")
    return float(alphas[0])
