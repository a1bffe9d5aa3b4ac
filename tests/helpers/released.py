"""Released models: the keys of their config.json as published, with sizes shrunk, and the tensors of the tiny model by name.

Copied from public copies of the files; keys that transformers or fla no longer reads are the point of it.
"""

from typing import Any, NamedTuple

import numpy as np

Shapes = dict[str, tuple[int, ...]]


class Released(NamedTuple):
    """A config.json, and the shapes of tensors."""

    config: dict[str, Any]
    shapes: Shapes

    def tensors(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        return {name: (0.3 * random.normal(size=shape)).astype(np.float32) for name, shape in self.shapes.items()}


def model(outside: Shapes, layers: str, *each: Shapes) -> Shapes:
    """Shapes outside the layers, and of each layer; `layers` is the prefix of a layer's tensors with {} for its index."""
    return outside | {layers.format(i) + name: shape for i, shapes in enumerate(each) for name, shape in shapes.items()}


def weights(**shapes: tuple[int, ...]) -> Shapes:
    """Shapes of tensors NAME.weight; "__" stands for a dot."""
    return {f"{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}


MAMBA_1_4B = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_model": 16,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.1,
    "intermediate_size": 32,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 8,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 3,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "transformers_version": "4.39.0.dev0",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 11,
}
MAMBA_370M = MAMBA_1_4B | {"d_inner": 10, "dt_rank": "auto"}  # d_inner is wrong there as well, and not read
MAMBA = model(
    weights(backbone__embeddings=(11, 16), backbone__norm_f=(16,)),
    "backbone.layers.{}.",
    *2
    * [
        weights(norm=(16,), mixer__conv1d=(32, 1, 4), mixer__dt_proj=(32, 3), mixer__in_proj=(64, 16))
        | weights(mixer__out_proj=(16, 32), mixer__x_proj=(19, 32))
        | {"mixer.A_log": (32, 8), "mixer.D": (32,), "mixer.conv1d.bias": (32,), "mixer.dt_proj.bias": (32,)}
    ],
)
CODESTRAL = {
    "_name_or_path": "/raid/pablo/codestral-hf-good/",
    "architectures": ["Mamba2ForCausalLM"],
    "bos_token_id": 0,
    "chunk_size": 256,
    "conv_kernel": 4,
    "eos_token_id": 0,
    "expand": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.1,
    "intermediate_size": 32,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba2",
    "n_groups": 2,
    "norm_before_gate": True,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "state_size": 4,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_limit": [0.0, float("inf")],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 1,
    "time_step_scale": 1.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0.dev0",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 11,
}
MAMBA2 = model(
    weights(backbone__embeddings=(11, 16), backbone__norm_f=(16,), lm_head=(11, 16)),
    "backbone.layers.{}.",
    *2
    * [
        weights(norm=(16,), mixer__conv1d=(48, 1, 4), mixer__in_proj=(84, 16), mixer__norm=(32,), mixer__out_proj=(16, 32))
        | {"mixer.A_log": (4,), "mixer.D": (4,), "mixer.dt_bias": (4,), "mixer.conv1d.bias": (48,)}
    ],
)
XLSTM_7B = {
    "_name_or_path": "NX-AI/xLSTM-7b",
    "add_embedding_dropout": False,
    "add_forward_backend_padding": False,
    "add_out_norm": True,
    "add_post_blocks_norm": True,
    "add_post_norm": False,
    "add_qk_norm": False,
    "architectures": ["xLSTMForCausalLM"],
    "autocast_kernel_dtype": "bfloat16",
    "bos_token_id": 0,
    "cell_norm_eps": 1e-06,
    "chunk_size": 64,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk",
    "embedding_dim": 16,
    "eos_token_id": 2,
    "eps": 1e-06,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 4,
    "force_bos_token_insert": True,
    "gate_soft_cap": 15.0,
    "head_dim": 8,
    "igate_bias_init_range": -10.0,
    "inference_state_dtype": "float32",
    "mlstm_round_up_to_multiple_of": 4,
    "mode": "inference",
    "model_type": "xlstm",
    "norm_eps": 1e-06,
    "norm_reduction_force_float32": True,
    "num_blocks": 2,
    "num_heads": 2,
    "output_logit_soft_cap": 30.0,
    "pad_token_id": 1,
    "qk_dim_factor": 0.5,
    "return_last_states": True,
    "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0",
    "use_bias": False,
    "use_cache": True,
    "v_dim_factor": 1.0,
    "vocab_size": 11,
    "weight_mode": "single",
}
XLSTM = model(
    weights(backbone__embeddings=(11, 16), backbone__out_norm=(16,), lm_head=(11, 16)),
    "backbone.blocks.{}.",
    *2
    * [
        weights(norm_mlstm=(16,), norm_ffn=(16,), ffn__proj_up=(44, 16), ffn__proj_up_gate=(44, 16), ffn__proj_down=(16, 44))
        | {f"mlstm_layer.{name}.weight": (rows, 16) for name, rows in {"q": 8, "k": 8, "v": 16, "ogate_preact": 16}.items()}
        | {f"mlstm_layer.{name}_preact.weight": (2, 16) for name in ("igate", "fgate")}
        | {f"mlstm_layer.{name}_preact.bias": (2,) for name in ("igate", "fgate")}
        | weights(mlstm_layer__multihead_norm=(16,), mlstm_layer__out_proj=(16, 16))
    ],
)
RECURRENTGEMMA_2B = {
    "_block_types": ["recurrent", "recurrent", "attention"],
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_window_size": 8,
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 16,
    "intermediate_size": 48,
    "logits_soft_cap": 30.0,
    "lru_width": 16,
    "model_type": "recurrent_gemma",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 11,
}
_GRIFFIN = weights(temporal_pre_norm=(16,), channel_pre_norm=(16,)) | weights(mlp_block__down_proj=(16, 24))
_GRIFFIN |= weights(mlp_block__gate_proj=(24, 16), mlp_block__up_proj=(24, 16)) | {"mlp_block.down_proj.bias": (16,)}
_GRIFFIN |= {f"mlp_block.{name}_proj.bias": (24,) for name in ("gate", "up")}
_RECURRENT = {f"temporal_block.linear_{name}.weight": (16, 16) for name in ("x", "y", "out")}
_RECURRENT |= {f"temporal_block.linear_{name}.bias": (16,) for name in ("x", "y", "out")}
_RECURRENT |= {"temporal_block.conv_1d.weight": (16, 1, 4), "temporal_block.conv_1d.bias": (16,)}
_RECURRENT |= {f"temporal_block.rg_lru.{name}_gate_weight": (2, 8, 8) for name in ("input", "recurrent")}
_RECURRENT |= {f"temporal_block.rg_lru.{name}_gate_bias": (2, 8) for name in ("input", "recurrent")}
_RECURRENT |= {"temporal_block.rg_lru.recurrent_param": (16,)}
_LOCAL = weights(temporal_block__q_proj=(16, 16), temporal_block__k_proj=(8, 16), temporal_block__v_proj=(8, 16))
_LOCAL |= weights(temporal_block__o_proj=(16, 16)) | {"temporal_block.o_proj.bias": (16,)}
GRIFFIN = model(
    weights(model__embed_tokens=(11, 16), model__final_norm=(16,)),
    "model.layers.{}.",
    *2 * [_GRIFFIN | _RECURRENT],
    _GRIFFIN | _LOCAL,
)
RWKV4_430M = {
    "_name_or_path": "/home/younes_huggingface_co/rwkv/rwkv-430m-pile",
    "architectures": ["RwkvForCausalLM"],
    "attention_hidden_size": 16,
    "bos_token_id": 0,
    "context_length": 1024,
    "eos_token_id": 0,
    "hidden_size": 16,
    "intermediate_size": 64,
    "layer_norm_epsilon": 1e-05,
    "model_type": "rwkv",
    "num_hidden_layers": 2,
    "rescale_every": 6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.29.0.dev0",
    "use_cache": True,
    "vocab_size": 11,
}
_RWKV4 = {f"{norm}.{part}": (16,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
_RWKV4 |= {f"attention.{name}.weight": (16, 16) for name in ("key", "value", "receptance", "output")}
_RWKV4 |= {f"attention.time_mix_{name}": (1, 1, 16) for name in ("key", "value", "receptance")}
_RWKV4 |= {f"feed_forward.time_mix_{name}": (1, 1, 16) for name in ("key", "receptance")}
_RWKV4 |= {"attention.time_decay": (16,), "attention.time_first": (16,)}
_RWKV4 |= weights(feed_forward__key=(64, 16), feed_forward__receptance=(16, 16), feed_forward__value=(16, 64))
RWKV4 = model(
    weights(rwkv__embeddings=(11, 16), head=(11, 16))
    | {f"rwkv.{norm}.{part}": (16,) for norm in ("ln_out", "blocks.0.pre_ln") for part in ("weight", "bias")},
    "rwkv.blocks.{}.",
    _RWKV4,
    _RWKV4,
)
QWEN3_5_0_8B = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 8,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [1, 1, 0],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 11,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 248057,
    "vision_config": {"depth": 12, "hidden_size": 768, "model_type": "qwen3_5", "num_heads": 12, "patch_size": 16},
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}
QWEN3_6_27B = QWEN3_5_0_8B | {
    "language_model_only": False,
    "text_config": {key: value for key, value in QWEN3_5_0_8B["text_config"].items() if key != "mlp_only_layers"}
    | {"bos_token_id": 248044, "output_gate_type": "swish", "pad_token_id": None, "partial_rotary_factor": 0.25}
    | {"tie_word_embeddings": False},
    "tie_word_embeddings": False,
    "transformers_version": "4.57.1",
}
_SWIGLU = weights(mlp__gate_proj=(24, 16), mlp__up_proj=(24, 16), mlp__down_proj=(16, 24))
_QWEN = _SWIGLU | weights(input_layernorm=(16,), post_attention_layernorm=(16,))
QWEN3_5 = model(
    weights(model__language_model__embed_tokens=(11, 16), model__language_model__norm=(16,))
    | weights(model__visual__patch_embed__proj=(4, 3), mtp__fc=(16, 32)),
    "model.language_model.layers.{}.",
    _QWEN
    | weights(linear_attn__in_proj_qkv=(56, 16), linear_attn__in_proj_z=(32, 16), linear_attn__in_proj_b=(4, 16))
    | weights(
        linear_attn__in_proj_a=(4, 16), linear_attn__conv1d=(56, 1, 4), linear_attn__norm=(8,), linear_attn__out_proj=(16, 32)
    )
    | {"linear_attn.A_log": (4,), "linear_attn.dt_bias": (4,)},
    _QWEN
    | weights(self_attn__q_proj=(64, 16), self_attn__k_proj=(16, 16), self_attn__v_proj=(16, 16), self_attn__o_proj=(16, 32))
    | weights(self_attn__q_norm=(16,), self_attn__k_norm=(16,)),
)
OLMO_HYBRID_7B = {
    "architectures": ["OlmoHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 9,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_allow_neg_eigval": True,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 65536,
    "model_type": "olmo_hybrid",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 10,
    "rms_norm_eps": 1e-06,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 11,
}
OLMO_HYBRID_DPO_7B = OLMO_HYBRID_7B | {"dtype": "bfloat16", "rope_parameters": {"rope_theta": None, "rope_type": "default"}}
OLMO_HYBRID = model(
    weights(model__embed_tokens=(11, 16), model__norm=(16,), lm_head=(11, 16)),
    "model.layers.{}.",
    _SWIGLU
    | weights(attention_layer_norm=(16,), feedforward_layer_norm=(16,), linear_attn__o_norm=(12,), linear_attn__o_proj=(16, 24))
    | {f"linear_attn.{name}_proj.weight": (12, 16) for name in "qk"}
    | {f"linear_attn.{name}_proj.weight": (24, 16) for name in "vg"}
    | {f"linear_attn.{name}_proj.weight": (2, 16) for name in "ab"}
    | weights(linear_attn__q_conv1d=(12, 1, 4), linear_attn__k_conv1d=(12, 1, 4), linear_attn__v_conv1d=(24, 1, 4))
    | {"linear_attn.A_log": (2,), "linear_attn.dt_bias": (2,)},
    _SWIGLU
    | {f"self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"}
    | weights(self_attn__q_norm=(16,), self_attn__k_norm=(16,))
    | weights(post_attention_layernorm=(16,), post_feedforward_layernorm=(16,)),
)
KIMI_LINEAR_48B = {
    "architectures": ["KimiLinearForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_kimi.KimiLinearConfig", "AutoModel": "modeling_kimi.KimiLinearModel"},
    "bos_token_id": 163584,
    "dtype": "bfloat16",
    "eos_token_id": 163586,
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": [2],
        "head_dim": 6,
        "kda_layers": [1, 3],
        "num_heads": 2,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 3,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "pad_token_id": 163839,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "transformers_version": "4.57.0",
    "use_cache": True,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 11,
}
MINIMAX_TEXT_01 = {
    "architectures": ["MiniMaxForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "full_attn_alpha_factor": 3.5565588200778455,
    "full_attn_beta_factor": 1.0,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_attn_alpha_factor": 3.5565588200778455,
    "linear_attn_beta_factor": 1.0,
    "max_position_embeddings": 10240000,
    "mlp_alpha_factor": 3.5565588200778455,
    "mlp_beta_factor": 1.0,
    "model_type": "minimax",
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 32,
    "output_router_logits": False,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000000,
    "rotary_dim": 4,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.45.2",
    "use_cache": True,
    "vocab_size": 11,
}
QWEN3_NEXT_80B_FP8 = {
    "architectures": ["Qwen3NextForCausalLM"],
    "decoder_sparse_step": 1,
    "hidden_size": 16,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "num_experts": 512,
    "num_hidden_layers": 2,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"},
    "vocab_size": 11,
}
MAMBA2_130M = {
    "d_model": 16,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": 11,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
GLA_OF_2024 = {
    "architectures": ["GLAForCausalLM"],
    "attn_mode": "fused_chunk",
    "bos_token_id": 1,
    "clamp_min": None,
    "conv_size": 4,
    "eos_token_id": 2,
    "expand_k": 0.5,
    "expand_v": 1,
    "fuse_cross_entropy": True,
    "fuse_norm": True,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "model_type": "gla",
    "num_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-06,
    "share_conv_kernel": True,
    "tie_word_embeddings": False,
    "transformers_version": "4.39.1",
    "use_cache": True,
    "use_gk": True,
    "use_gv": False,
    "use_short_conv": False,
    "vocab_size": 11,
}
GLA_OF_2025 = {key: value for key, value in GLA_OF_2024.items() if key not in ("rms_norm_eps", "share_conv_kernel")} | {
    "attn": None,
    "attn_mode": "chunk",
    "elementwise_affine": True,
    "feature_map": None,
    "fuse_swiglu": True,
    "norm_eps": 1e-06,
    "num_kv_heads": None,
    "transformers_version": "4.50.1",
    "use_output_gate": True,
}
_GLA = weights(attn_norm=(16,), mlp_norm=(16,), mlp__gate_proj=(256, 16), mlp__up_proj=(256, 16), mlp__down_proj=(16, 256))
_GLA |= weights(attn__q_proj=(8, 16), attn__k_proj=(8, 16), attn__v_proj=(16, 16), attn__g_proj=(16, 16), attn__o_proj=(16, 16))
_GLA |= weights(attn__gk_proj__0=(16, 16), attn__gk_proj__1=(8, 16), attn__g_norm_swish_gate=(4,)) | {"attn.gk_proj.1.bias": (8,)}
GLA = model(weights(model__embeddings=(11, 16), model__norm=(16,), lm_head=(11, 16)), "model.layers.{}.", _GLA, _GLA)
RWKV7_168M = {
    "a_low_rank_dim": 3,
    "architectures": ["RWKV7ForCausalLM"],
    "attn": None,
    "attn_mode": "chunk",
    "auto_map": {"AutoConfig": "modeling_rwkv7.RWKV7Config", "AutoModelForCausalLM": "modeling_rwkv7.RWKV7ForCausalLM"},
    "bos_token_id": 0,
    "decay_low_rank_dim": 3,
    "eos_token_id": 0,
    "fuse_cross_entropy": True,
    "fuse_norm": False,
    "gate_low_rank_dim": 3,
    "head_dim": 8,
    "hidden_act": "sqrelu",
    "hidden_ratio": 4.0,
    "hidden_size": 16,
    "initializer_range": 0.006,
    "intermediate_size": 24,
    "max_position_embeddings": 2048,
    "model_type": "rwkv7",
    "norm_bias": True,
    "norm_eps": 1e-05,
    "norm_first": True,
    "num_heads": 32,  # not read, here and there: hidden_size / head_dim is 12 in the released model
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
    "transformers_version": "4.48.0",
    "use_cache": True,
    "v_low_rank_dim": 3,
    "vocab_size": 11,
}
_RWKV7 = {f"{norm}.{part}": (16,) for norm in ("attn_norm", "ffn_norm", "attn.g_norm") for part in ("weight", "bias")}
_RWKV7 |= {f"attn.x_{name}": (1, 1, 16) for name in "rwkvag"} | {"attn.k_k": (16,), "attn.k_a": (16,), "attn.r_k": (2, 8)}
_RWKV7 |= {f"attn.{name}_proj.weight": (16, 16) for name in "rkvo"}
_RWKV7 |= {f"attn.{name}_lora.lora.0.weight": (3, 16) for name in "wavg"}
_RWKV7 |= {f"attn.{name}_lora.lora.2.weight": (16, 3) for name in "wavg"} | {f"attn.{n}_lora.lora.2.bias": (16,) for n in "wav"}
_RWKV7 |= {"ffn.x_k": (16,)} | weights(ffn__key=(24, 16), ffn__value=(16, 24))
RWKV7 = model(
    weights(model__embeddings=(11, 16), model__norm=(16,), lm_head=(11, 16))
    | {name: (16,) for name in ("model.norm.bias", "model.layers.0.pre_norm.weight", "model.layers.0.pre_norm.bias")},
    "model.layers.{}.",
    {name: shape for name, shape in _RWKV7.items() if "v_lora" not in name},
    _RWKV7,
)

LOADED = {
    "state-spaces/mamba-370m-hf": Released(MAMBA_370M, MAMBA),
    "state-spaces/mamba-1.4b-hf": Released(MAMBA_1_4B, MAMBA),
    "mistralai/Mamba-Codestral-7B-v0.1": Released(CODESTRAL, MAMBA2),
    "NX-AI/xLSTM-7b": Released(XLSTM_7B, XLSTM),
    "google/recurrentgemma-2b": Released(RECURRENTGEMMA_2B, GRIFFIN),
    "RWKV/rwkv-4-430m-pile": Released(RWKV4_430M, RWKV4),
    "Qwen/Qwen3.5-0.8B": Released(QWEN3_5_0_8B, QWEN3_5),
    "Qwen/Qwen3.6-27B": Released(QWEN3_6_27B, QWEN3_5 | weights(lm_head=(11, 16))),
    "allenai/Olmo-Hybrid-7B": Released(OLMO_HYBRID_7B, OLMO_HYBRID),
    "allenai/Olmo-Hybrid-Instruct-DPO-7B": Released(OLMO_HYBRID_DPO_7B, OLMO_HYBRID),
    "flash-linear-attention's GLA in 2024": Released(GLA_OF_2024, GLA),
    "flash-linear-attention's GLA in 2025": Released(GLA_OF_2025, GLA),
    "flash-linear-attention's RWKV-7 of 168M": Released(RWKV7_168M, RWKV7),
}
REFUSED = {  # the config.json, and the reason
    "moonshotai/Kimi-Linear-48B-A3B": (KIMI_LINEAR_48B, r"latent attention .* in layers \[1\] and a mixture of experts .* is not"),
    "MiniMaxAI/MiniMax-Text-01-hf": (MINIMAX_TEXT_01, "num_local_experts=32 is not supported, only 1"),
    "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8": (QWEN3_NEXT_80B_FP8, "model_type='qwen3_next' is not supported: a mixture of experts"),
    "state-spaces/mamba2-130m": (
        MAMBA2_130M,
        "has no model_type, as files of mamba_ssm have none; wanted a file that transformers",
    ),
    "tiiuae/falcon-mamba-7b": (
        {"model_type": "falcon_mamba"},
        "model_type='falcon_mamba' is not supported: it normalises dt, B and C",
    ),
    "RWKV/rwkv-5-world-1b5": ({"model_type": "rwkv5"}, "model_type='rwkv5' is not supported: there is no mixer with RWKV-5's"),
    "RWKV/v6-Finch-1B6-HF": (
        {"model_type": "rwkv6", "architectures": ["Rwkv6ForCausalLM"], "head_size": 64},
        r"architectures=\['Rwkv6ForCausalLM'\] is not supported for model_type='rwkv6', only RWKV6ForCausalLM of flash-linear-att",
    ),
}
