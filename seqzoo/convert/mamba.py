"""Mamba (state-spaces/mamba-*-hf; transformers' MambaForCausalLM)."""

from seqzoo.convert.architecture import ModelMapping, architecture, prefixed
from seqzoo.convert.checkpoint import Config
from seqzoo.convert.tensor_map import Rule, conv_kernel, copy, matrix, split, tied_to

# Old files carry settings of the original code that transformers never reads.
WITHOUT_EFFECT = (
    "d_inner",  # 160 in mamba-370m-hf, which has 2048 channels
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "rescale_prenorm_residual",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    "use_associative_scan",
    "use_mambapy",
)


@architecture("mamba", "MambaForCausalLM")
def mamba(config: Config) -> ModelMapping:
    """Blocks without a channel mixer; the head is the embedding, unless config.json says otherwise."""
    d_model, expand = config.get("hidden_size"), config.get("expand", 2)
    e, n = int(expand * d_model), config.get("state_size", 16)
    rank = config.get("time_step_rank", "auto")
    config.only("intermediate_size", e)  # stored, but computed from the two above
    config.only("d_model", d_model)
    config.only("n_layer", config.get("num_hidden_layers"))
    config.only("dt_rank", "auto", rank)
    config.only("ssm_cfg", {})
    spec = f"mamba(expand={expand}, state={n}, conv_size={config.get('conv_kernel', 4)}"
    spec += ")" if rank == "auto" else f", dt_rank={rank})"
    mixer = {
        "in_proj.weight": split((e, e), matrix("mixer.x.w"), matrix("mixer.z.w")),
        "conv1d.weight": conv_kernel("mixer.convolution.w"),
        "conv1d.bias": copy("mixer.convolution.b"),
        "x_proj.weight": matrix("mixer.select.w"),
        "dt_proj.weight": matrix("mixer.dt.w"),
        "dt_proj.bias": copy("mixer.dt_bias"),
        "A_log": copy("mixer.a_log"),
        "D": copy("mixer.skip"),
        "out_proj.weight": matrix("mixer.out.w"),
    }
    config.ignore(*WITHOUT_EFFECT)
    return stack_mapping(config, spec, mixer, tied=True)


def stack_mapping(config: Config, spec: str, mixer: dict[str, Rule], *, tied: bool) -> ModelMapping:
    """Mapping of pre-norm blocks of Mamba or Mamba-2, an embedding, a final norm and a head.

    Args:
      spec: of the mixer; `mixer`: its rules; `tied`: default of tie_word_embeddings.
    """
    config.only("hidden_act", "silu")
    config.only("use_bias", False)
    config.only("use_conv_bias", True)
    config.only("rms_norm", True)
    depth, tied = config.get("num_hidden_layers"), config.get("tie_word_embeddings", tied)
    model = {
        "vocab_size": config.get("vocab_size"),
        "d_model": config.get("hidden_size"),
        "layers": (spec,),
        "depth": depth,
        "channel": "none",
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": tied,
        "residual_dtype": "float32" if config.get("residual_in_fp32", True) else None,
    }
    tensors = {
        "backbone.embeddings.weight": copy("embedding"),
        "backbone.norm_f.weight": copy("norm.scale"),
        "lm_head.weight": tied_to("backbone.embeddings.weight") if tied else matrix("head.w"),
    }
    layer = {"norm.weight": copy("mixer_norm.scale"), **prefixed("mixer.", mixer)}
    return ModelMapping(model, tensors, tuple(prefixed(f"backbone.layers.{i}.", layer) for i in range(depth)))
