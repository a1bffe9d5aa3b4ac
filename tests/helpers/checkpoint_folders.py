"""Checkpoint folders as other projects write them, small and random, made without those projects."""

import json

import numpy as np
from safetensors.numpy import save_file

MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "conv_kernel": 4,
    "expand": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "layer_norm_epsilon": 1e-5,
    "model_type": "mamba",
    "num_hidden_layers": 2,
    "residual_in_fp32": True,
    "state_size": 8,
    "tie_word_embeddings": True,
    "time_step_rank": 3,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 11,
}
LAYER = {
    "mixer.A_log": (32, 8),
    "mixer.D": (32,),
    "mixer.conv1d.bias": (32,),
    "mixer.conv1d.weight": (32, 1, 4),
    "mixer.dt_proj.bias": (32,),
    "mixer.dt_proj.weight": (32, 3),
    "mixer.in_proj.weight": (64, 16),
    "mixer.out_proj.weight": (16, 32),
    "mixer.x_proj.weight": (3 + 16, 32),
    "norm.weight": (16,),
}


def mamba_tensors(dtype=np.float32):
    """The tensors of a tied two-layer Mamba, by name."""
    shapes = {"backbone.embeddings.weight": (11, 16), "backbone.norm_f.weight": (16,)}
    shapes |= {f"backbone.layers.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
    random = np.random.default_rng(0)
    return {name: (0.3 * random.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}


def write(folder, tensors, config=MAMBA, shards=1):
    """A checkpoint folder; with several shards, also the index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = {f"model-{i + 1:05}-of-{shards:05}.safetensors": sorted(tensors)[i::shards] for i in range(shards)}
    for file, held in names.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in names.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
