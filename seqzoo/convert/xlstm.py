"""xLSTM 7B and its relatives (NX-AI/xLSTM-7b; transformers' xLSTMForCausalLM): mLSTM blocks alone."""

from seqzoo.convert.architecture import ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.tensor_map import copy, matrix
from seqzoo.mixers.linear_attention.mlstm import EPS

WITHOUT_EFFECT = (  # kernels and their precision; training; a token that the tokenizer adds
    "add_embedding_dropout",
    "add_forward_backend_padding",
    "autocast_kernel_dtype",
    "chunk_size",
    "chunkwise_kernel",
    "force_bos_token_insert",
    "igate_bias_init_range",
    "inference_state_dtype",
    "max_inference_chunksize",
    "mode",
    "norm_reduction_force_float32",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
)


@architecture("xlstm", "xLSTMForCausalLM")
def xlstm(config: Config) -> ModelMapping:
    """Pre-norm blocks of mLSTM and SwiGLU; gates and logits are soft-capped."""
    d_model, heads = config.first("hidden_size", "embedding_dim"), config.get("num_heads", 8)
    config.only("use_bias", False)
    config.only("add_out_norm", True)
    config.only("add_post_blocks_norm", True)
    config.only("add_post_norm", False)
    config.only("add_qk_norm", False)
    config.only("tie_word_embeddings", False)
    config.only("weight_mode", "single")  # transformers 5.23 cannot build "fused"
    config.only("eps", EPS)  # added to the denominator
    config.only("norm_eps", EPS)
    config.only("cell_norm_eps", EPS)
    keys, values = (int(d_model * config.get(f"{name}_dim_factor", default)) for name, default in (("qk", 0.5), ("v", 1.0)))
    config.only("head_dim", values // heads)
    multiple = config.get("mlstm_round_up_to_multiple_of", 1)
    if keys % multiple or values % multiple:
        found = f"mlstm_round_up_to_multiple_of={multiple} is not supported"
        raise ConvertError(f"{config.where}: {found}, only a divisor of the widths of keys and values, {keys} and {values}")
    multiple = config.get("ffn_round_up_to_multiple_of", 64)
    hidden = int((d_model * config.get("ffn_proj_factor", 2.667) + multiple - 1) // multiple) * multiple
    depth = config.first("num_hidden_layers", "num_blocks")
    spec = f"mlstm(heads={heads}, expand_k={keys / d_model}, expand_v={values / d_model}, "
    spec += f"gate_cap={config.get('gate_soft_cap', 15.0)})"
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": d_model,
        "layers": (spec,),
        "depth": depth,
        "channel": f"swiglu(hidden={hidden})",
        "norm_eps": EPS,
        "tie_embeddings": False,
        "logits_soft_cap": config.get("output_logit_soft_cap", 30.0),
    }
    tensors = {
        "backbone.embeddings.weight": copy("embedding"),
        "backbone.out_norm.weight": copy("norm.scale"),
        "lm_head.weight": matrix("head.w"),
    }
    layer = {
        "norm_mlstm.weight": copy("mixer_norm.scale"),
        "norm_ffn.weight": copy("channel_norm.scale"),
        "mlstm_layer.multihead_norm.weight": copy("mixer.norm.scale"),
        "mlstm_layer.out_proj.weight": matrix("mixer.out.w"),
        "ffn.proj_down.weight": matrix("channel.down.w"),
        "mlstm_layer.q.weight": matrix("mixer.q.w"),
        "mlstm_layer.k.weight": matrix("mixer.k.w"),
        "mlstm_layer.v.weight": matrix("mixer.v.w"),
        "mlstm_layer.ogate_preact.weight": matrix("mixer.gate.w"),
        "mlstm_layer.igate_preact.weight": matrix("mixer.input.projection.w"),
        "mlstm_layer.igate_preact.bias": copy("mixer.input.bias"),
        "mlstm_layer.fgate_preact.weight": matrix("mixer.forget.projection.w"),
        "mlstm_layer.fgate_preact.bias": copy("mixer.forget.bias"),
        "ffn.proj_up_gate.weight": matrix("channel.gate.w"),
        "ffn.proj_up.weight": matrix("channel.up.w"),
    }
    config.ignore(*WITHOUT_EFFECT)
    return ModelMapping(model, tensors, tuple(prefixed(f"backbone.blocks.{i}.", layer) for i in range(depth)))
