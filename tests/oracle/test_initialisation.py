"""Initial parameters against transformers' freshly made models: each tensor has their distribution, or the one listed here.

The list is what transformers changed against the released training code: its models are made to be loaded, and rarely trained from
their first weights. Ours are drawn as that code draws them.
"""

import math

import numpy as np
import pytest
from flax import nnx, traverse_util
from scipy import stats

from seqzoo import convert
from seqzoo.model import LanguageModel

from .models import VOCAB

pytestmark = pytest.mark.oracle

P_VALUE = 1e-3  # of Kolmogorov and Smirnov's test; seeds are fixed, so it decides once


# Cumulative distributions (shape, values) -> probabilities.


def uniform(low, high):
    return lambda shape, x: stats.uniform(low, high - low).cdf(x)


def projection(shape, x):
    """The framework's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as in the released code."""
    return uniform(-(shape[-2] ** -0.5), shape[-2] ** -0.5)(shape, x)


def embedding(shape, x):
    """Ours: see `LanguageModel`."""
    return stats.norm(0, shape[-1] ** -0.5).cdf(x)


def log_of_uniform(shape, x):
    """A uniform in [1, 16]."""
    return uniform(1, 16)(shape, np.exp(x))


def log_uniform_steps(shape, x):
    """softplus(x) log-uniform in [0.001, 0.1]."""
    return uniform(math.log(1e-3), math.log(0.1))(shape, np.log(np.log1p(np.exp(x))))


MODELS = {  # class, settings, and the distributions that are not transformers': {parameter: ours}
    "mamba": (
        "MambaForCausalLM",
        {"rescale_prenorm_residual": True},
        {
            "embedding": embedding,
            "mixer.x.w": projection,
            "mixer.z.w": projection,
            "mixer.select.w": projection,
            "mixer.convolution.b": uniform(-0.5, 0.5),  # 1 / sqrt(conv_size)
        },
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"rescale_prenorm_residual": True, "num_heads": 64, "head_dim": 4, "n_groups": 1, "state_size": 32},
        {
            "embedding": embedding,
            "head.w": projection,
            **{f"mixer.{name}.w": projection for name in ("x", "z", "bc", "dt")},
            "mixer.convolution.b": uniform(-0.5, 0.5),
            "mixer.bc_convolution.b": uniform(-0.5, 0.5),
            "mixer.a_log": log_of_uniform,  # transformers: 1, 2, ... heads
        },
    ),
    "qwen3_5": (
        "Qwen3_5ForCausalLM",
        {
            "layer_types": ["linear_attention"] * 2,
            "linear_num_key_heads": 32,
            "linear_key_head_dim": 4,
            "linear_num_value_heads": 32,
            "linear_value_head_dim": 4,
            "intermediate_size": 128,
        },
        {
            "embedding": embedding,
            "head.w": projection,
            **{f"mixer.{name}.w": projection for name in ("q", "k", "v", "gate", "beta", "decay_in", "out")},
            **{f"channel.{name}.w": projection for name in ("gate", "up", "down")},
            **{f"mixer.{name}_convolution.w": uniform(-0.5, 0.5) for name in "qkv"},
            "mixer.decay.bias": log_uniform_steps,  # transformers: 1
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_initial_parameters_are_distributed_as_in_transformers_or_as_listed(torch, tmp_path, name):
    import transformers

    kind, settings, listed = MODELS[name]
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    kind(kind.config_class(vocab_size=VOCAB, hidden_size=128, num_hidden_layers=2, **settings)).save_pretrained(tmp_path)
    theirs, ours = flat(convert.load(tmp_path)), flat(LanguageModel(**convert.settings(tmp_path), rngs=nnx.Rngs(0)))
    different = {path for path in ours if stats.ks_2samp(ours[path].ravel(), theirs[path].ravel()).pvalue < P_VALUE}
    assert different == listed.keys()
    for path, distribution in listed.items():
        value = ours[path]
        assert stats.kstest(value.ravel(), lambda x: distribution(value.shape, x)).pvalue > P_VALUE, path  # noqa: B023


def flat(model):
    """Parameters by name, inside a block by that in the block; rounded: logarithms of equal numbers differ in their last bits."""
    leaves = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    name = lambda path: ".".join(path[3:] if path[0] == "stack" else path)  # ("stack", "scanned", "0_mamba", ...)
    return {name(path): np.round(np.asarray(leaf), 5) for path, leaf in leaves.items()}
