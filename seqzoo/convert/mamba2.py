"""Mamba-2 (transformers' Mamba2ForCausalLM)."""

import math

from seqzoo.convert.architecture import ModelMapping, architecture
from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.mamba import stack_mapping
from seqzoo.convert.tensor_map import conv_kernel, copy, matrix, split

WITHOUT_EFFECT = (
    "chunk_size",
    "norm_before_gate",  # true in Mamba-Codestral-7B; transformers always gates first
    "rescale_prenorm_residual",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_rank",
    "time_step_scale",
)


@architecture("mamba2", "Mamba2ForCausalLM")
def mamba2(config: Config) -> ModelMapping:
    """Blocks without a channel mixer. The gated norm runs over each group's channels, after the gate."""
    d_model, expand = config.get("hidden_size"), config.get("expand", 2)
    e, width, heads = int(expand * d_model), config.get("head_dim", 64), config.get("num_heads")
    if heads * width != e:
        raise ConvertError(f"{config.where}: num_heads={heads} of head_dim={width} are not expand * hidden_size = {e} channels")
    config.only("intermediate_size", e)  # stored in older files, but computed
    n, groups = config.get("state_size", 128), config.get("n_groups", 8)
    spec = f"mamba2(expand={expand}, head_dim={width}, state={n}, groups={groups}, conv_size={config.get('conv_kernel', 4)}, "
    spec += f"norm_eps={config.get('layer_norm_epsilon', 1e-5)}, dt_limit={_limit(config)})"
    bc = 2 * groups * n
    mixer = {
        "in_proj.weight": split((e, e, bc, heads), *(matrix(f"mixer.{name}.w") for name in ("z", "x", "bc", "dt"))),
        "conv1d.weight": split((e, bc), conv_kernel("mixer.convolution.w"), conv_kernel("mixer.bc_convolution.w")),
        "conv1d.bias": split((e, bc), copy("mixer.convolution.b"), copy("mixer.bc_convolution.b")),
        "dt_bias": copy("mixer.dt_bias"),
        "A_log": copy("mixer.a_log"),
        "D": copy("mixer.skip"),
        "norm.weight": copy("mixer.norm.scale"),
        "out_proj.weight": matrix("mixer.out.w"),
    }
    config.ignore(*WITHOUT_EFFECT)
    return stack_mapping(config, spec, mixer, tied=False)


def _limit(config: Config) -> tuple[float, float | None]:
    """Bounds on the step size; transformers applies them to whole rows, and not to single tokens after a state."""
    limit = config.get("time_step_limit", (0.0, math.inf))
    low, high = (float(x["__float__"]) if isinstance(x, dict) else float(x) for x in limit)  # transformers' spelling of inf in JSON
    return low, None if high == math.inf else high
