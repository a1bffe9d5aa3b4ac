"""RecurrentGemma (google/recurrentgemma-*; transformers' RecurrentGemmaForCausalLM): Griffin."""

import jax.numpy as jnp
import numpy as np

from seqzoo.convert.architecture import ModelMapping, architecture, prefixed, rotary
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.tensor_map import Rule, add_one, conv_kernel, copy, matrix, tied_to

WITHOUT_EFFECT = ("attention_dropout", "final_w_init_variance_scale", "w_init_variance_scale")  # training, initialisation


@architecture("recurrent_gemma", "RecurrentGemmaForCausalLM")
def recurrent_gemma(config: Config) -> ModelMapping:
    """Blocks of RG-LRU or sliding-window attention, and GeGLU with biases; norms store scale - 1."""
    config.only("hidden_activation", "gelu_pytorch_tanh")
    config.only("attention_bias", False)
    config.only("embeddings_scale_by_sqrt_dim", True)
    d_model, heads, depth = config.get("hidden_size"), config.get("num_attention_heads"), config.get("num_hidden_layers")
    kv_heads, width = config.get("num_key_value_heads", None) or heads, d_model // heads
    config.only("head_dim", width)  # stored, but computed
    base, fraction = rotary(config, base=10000.0, fraction=0.5)
    lru = f"rg_lru(expand={(config.get('lru_width', None) or d_model) / d_model}, heads={heads}, "
    attention = (
        f"softmax(heads={heads}, kv_heads={kv_heads}, head_dim={width}, window={config.get('attention_window_size', 2048)}, "
    )
    specs = {
        "recurrent": f"{lru}conv_size={config.get('conv1d_width', 4)})",
        "attention": f"{attention}rope_theta={base}, rope_dim={int(width * fraction)}, out_bias=True)",
    }
    rules = {"recurrent": prefixed("temporal_block.", _recurrent()), "attention": prefixed("temporal_block.", _attention())}
    config.only("_block_types", config.get("block_types", config.get("_block_types", None)))  # the name in older files
    pattern = config.get("block_types", config.get("_block_types", ("recurrent", "recurrent", "attention")))
    if not pattern or not set(pattern) <= set(specs):
        raise ConvertError(f"{config.where}: block_types={pattern!r} is not supported, only {' and '.join(map(repr, specs))}")
    tied = config.get("tie_word_embeddings", True)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": d_model,
        "layers": tuple(specs[kind] for kind in pattern),
        "depth": depth,
        "channel": f"geglu(hidden={config.get('intermediate_size') // 2}, bias=True)",
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "embedding_scale": float(np.asarray(d_model**0.5).astype(jnp.bfloat16)),  # rounded to bfloat16 in the reference
        "logits_soft_cap": config.get("logits_soft_cap", 30.0),
        "tie_embeddings": tied,
    }
    tensors = {
        "model.embed_tokens.weight": copy("embedding"),
        "model.final_norm.weight": add_one("norm.scale"),
        "lm_head.weight": tied_to("model.embed_tokens.weight") if tied else matrix("head.w"),
    }
    shared = {
        "temporal_pre_norm.weight": add_one("mixer_norm.scale"),
        "channel_pre_norm.weight": add_one("channel_norm.scale"),
        **{f"mlp_block.{name}_proj.weight": matrix(f"channel.{name}.w") for name in ("gate", "up", "down")},
        **{f"mlp_block.{name}_proj.bias": copy(f"channel.{name}.b") for name in ("gate", "up", "down")},
    }
    kinds = (pattern[i % len(pattern)] for i in range(depth))
    layers = (prefixed(f"model.layers.{i}.", shared | rules[kind]) for i, kind in enumerate(kinds))
    config.ignore(*WITHOUT_EFFECT)
    return ModelMapping(model, tensors, tuple(layers))


def _recurrent() -> dict[str, Rule]:
    linears, gates = ("linear_x", "linear_y", "linear_out"), ("recurrent_gate", "input_gate")
    return {
        **{f"{name}.weight": matrix(f"mixer.{name}.w") for name in linears},
        **{f"{name}.bias": copy(f"mixer.{name}.b") for name in linears},
        "conv_1d.weight": conv_kernel("mixer.conv_1d.w"),
        "conv_1d.bias": copy("mixer.conv_1d.b"),
        "rg_lru.recurrent_param": copy("mixer.recurrent_param"),
        **{f"rg_lru.{name}_weight": copy(f"mixer.{name}.w") for name in gates},  # [heads, in, out] there as well
        **{f"rg_lru.{name}_bias": copy(f"mixer.{name}.b") for name in gates},
    }


def _attention() -> dict[str, Rule]:
    names = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}
    return {f"{theirs}.weight": matrix(f"mixer.{ours}.w") for theirs, ours in names.items()} | {"o_proj.bias": copy("mixer.out.b")}
