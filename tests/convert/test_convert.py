"""Importers: checkpoints that they read and refuse. tests/oracle compares the functions themselves."""

import builtins
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from helpers.checkpoint_folders import MAMBA, mamba_tensors, write
from helpers.tolerances import RELATIVE, assert_close
from seqzoo import convert
from seqzoo.convert import loader

TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9))
FIRST = "backbone.layers.0.mixer."


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", mamba_tensors())


def parameters(module):
    return nnx.to_pure_dict(nnx.state(module))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, parameters(a), parameters(b))


def test_every_tensor_lands_in_our_layout(folder):
    file, got = mamba_tensors(), parameters(convert.load(folder))
    mixer = got["stack"]["scanned"]["0_mamba"]["mixer"]
    for i in range(2):
        at = lambda name, i=i: file[f"backbone.layers.{i}.mixer.{name}"]
        np.testing.assert_array_equal(np.concatenate([mixer["x"]["w"][i], mixer["z"]["w"][i]], axis=1), at("in_proj.weight").T)
        np.testing.assert_array_equal(mixer["convolution"]["w"][i], at("conv1d.weight")[:, 0].T)
        np.testing.assert_array_equal(mixer["a_log"][i], at("A_log"))
        np.testing.assert_array_equal(mixer["dt_bias"][i], at("dt_proj.bias"))
    np.testing.assert_array_equal(got["embedding"], file["backbone.embeddings.weight"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))


def test_several_files_hold_the_same_model_as_one(folder, tmp_path):
    assert_same(convert.load(write(tmp_path / "shards", mamba_tensors(), shards=3)), convert.load(folder))


def test_a_bfloat16_file_is_read_exactly_and_its_residual_stream_stays_wide(tmp_path):
    folder = write(tmp_path / "model", mamba_tensors(ml_dtypes.bfloat16))
    narrow, wide = (convert.load(folder, param_dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    jax.tree.map(lambda n, w: np.testing.assert_array_equal(n.astype(np.float32), w), parameters(narrow), parameters(wide))
    assert narrow.residual_dtype == jnp.float32
    logits, wanted = narrow(TOKENS)[0], wide(TOKENS)[0]
    assert logits.dtype == jnp.float32
    assert_close(logits, wanted, tolerance=RELATIVE["bfloat16"])


def test_one_mixer_is_that_layer_of_the_model(folder):
    layers = parameters(convert.load(folder))["stack"]["scanned"]["0_mamba"]["mixer"]
    mixer = convert.load_mixer(folder, layer=1)
    jax.tree.map(lambda one, both: np.testing.assert_array_equal(one, both[1]), parameters(mixer), layers)
    assert mixer(jnp.ones((1, 3, 16)))[0].shape == (1, 3, 16)
    with pytest.raises(convert.ConvertError, match=r"layer=2: .* has layers 0 to 1"):
        convert.load_mixer(folder, layer=2)


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    tensors = mamba_tensors()
    head = {"lm_head.weight": tensors["backbone.embeddings.weight"]}
    assert_same(convert.load(write(tmp_path / "a", tensors | head)), convert.load(write(tmp_path / "b", tensors)))
    with pytest.raises(convert.ConvertError, match=r"lm_head.weight differs from backbone.embeddings.weight"):
        convert.load(write(tmp_path / "c", tensors | {"lm_head.weight": head["lm_head.weight"] + 1}))


def test_an_untied_head_is_filled(tmp_path):
    tensors = mamba_tensors() | {"lm_head.weight": np.ones((11, 16), np.float32)}
    model = convert.load(write(tmp_path / "model", tensors, MAMBA | {"tie_word_embeddings": False}))
    np.testing.assert_array_equal(model.head.w[...], np.ones((16, 11)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({FIRST + "D": None}, r"does not fit its config.json:\s+backbone.layers.0.mixer.D is missing$"),
        ({"backbone.extra": np.ones(3, np.float32)}, "backbone.extra is unused: no parameter is made from it"),
        (
            {FIRST + "x_proj.weight": np.ones((20, 32), np.float32)},
            r"x_proj.weight has shape \(20, 32\), which makes mixer.select.w \(32, 20\); wanted \(32, 19\)$",
        ),
        (
            {FIRST + "in_proj.weight": np.ones((63, 16), np.float32)},
            r"in_proj.weight has shape \(63, 16\): wanted 32 \+ 32 = 64",
        ),
        ({FIRST + "conv1d.weight": np.ones(3, np.float32)}, r"conv1d.weight has shape \(3,\): "),
        ({FIRST + "A_log": None, "left": np.ones(2, np.float32)}, r"A_log is missing\s+left is unused"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, changes, message):
    tensors = {name: x for name, x in (mamba_tensors() | changes).items() if x is not None}
    with pytest.raises(convert.ConvertError, match=message):
        convert.load(write(tmp_path / "model", tensors))


def test_a_long_list_is_cut(tmp_path):
    with pytest.raises(convert.ConvertError, match=r"and 15 more$"):
        convert.load(write(tmp_path / "model", {"x": np.ones(2, np.float32)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mambo"}, r"model_type='mambo' is not supported, only .*mamba.* Did you mean 'mamba'\?"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"use_bias": True}, "use_bias=True is not supported, only False"),
        ({"intermediate_size": 48}, "intermediate_size=48 is not supported, only 32"),
        ({"a_new_trick": 7}, "settings that are unknown for model_type='mamba' and may change what it computes: a_new_trick=7"),
        ({"vocab_size": None}, "config.json has no 'vocab_size', which has no default"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, changes, message):
    config = {key: value for key, value in (MAMBA | changes).items() if value is not None}
    with pytest.raises(convert.ConvertError, match=message):
        convert.load(write(tmp_path / "model", mamba_tensors(), config))


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 11}
HEADS = SMALL | {"num_heads": 2, "head_dim": 8}
ARCHITECTURES = {  # the settings that have no default, or a default too large for a test
    "comba": HEADS,
    "delta_net": SMALL,
    "gated_deltanet": HEADS,
    "gated_deltaproduct": HEADS,
    "gla": SMALL,
    "gsa": SMALL,
    "hgrn2": SMALL | {"expand_ratio": 8},
    "kda": HEADS,
    "kimi_linear": SMALL
    | {"layer_types": ["linear_attention"] * 2, "mlp_layer_types": ["dense"] * 2, "intermediate_size": 24}
    | {"linear_num_heads": 2, "linear_head_dim": 4},
    "mamba": SMALL,
    "mamba2": SMALL | {"num_heads": 2, "head_dim": 16, "n_groups": 2},
    "minimax": SMALL
    | {"num_attention_heads": 2, "layer_types": ["linear_attention"] * 2, "intermediate_size": 24, "num_local_experts": 1},
    "olmo_hybrid": SMALL
    | {"num_attention_heads": 2, "layer_types": ["linear_attention", "full_attention"], "intermediate_size": 24},
    "qwen3_5": {"text_config": SMALL | {"intermediate_size": 24, "full_attention_interval": 2}},
    "qwen3_5_text": SMALL | {"intermediate_size": 24, "full_attention_interval": 2},
    "recurrent_gemma": SMALL | {"num_attention_heads": 2, "intermediate_size": 24},
    "retnet": SMALL,
    "rwkv": SMALL,
    "rwkv6": SMALL,
    "rwkv7": SMALL | {"head_dim": 8},
    "xlstm": SMALL,
}


def test_every_architecture_is_listed_here():
    assert set(ARCHITECTURES) == set(convert.names())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_parameter_of_an_architecture_has_its_rule(tmp_path, monkeypatch, model_type):
    """Without tensors, what is missing are the tensors that rules name; no parameter is left without a rule."""
    monkeypatch.setattr(loader, "SHOWN", 1000)
    with pytest.raises(convert.ConvertError, match="is missing") as error:
        convert.load(write(tmp_path, {}, ARCHITECTURES[model_type] | {"model_type": model_type}))
    assert "not filled by any tensor" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gla", {"num_kv_heads": 2}, "num_kv_heads=2 is not supported, only None or 4"),
        ("gla", {"attn": {"layers": [1], "num_heads": 2}}, r"attn=\{'layers': \[1\], 'num_heads': 2\} is not supported, only None"),
        ("gla", {"use_short_conv": True}, "use_short_conv=True is not supported, only False"),
        ("gla", {"clamp_min": -5}, "clamp_min=-5 is not supported, only None"),
        ("gla", {"elementwise_affine": False}, "elementwise_affine=False is not supported, only True"),
        ("gsa", {"feature_map": "relu"}, "feature_map='relu' is not supported, only 'swish'"),
        ("gsa", {"exapnd_k": 0.5}, "settings that are unknown for model_type='gsa' and may change what it computes: exapnd_k=0.5"),
        ("gsa", {"expand_v": 2.0}, "expand_v=2.0 is not supported, only 1"),
        (
            "hgrn2",
            {"expand_ratio": 5},
            "expand_ratio=5 and num_heads=None are not supported with hidden_size=16, only a divisor of it",
        ),
        ("hgrn2", {"attnres_block_size": 2}, "attnres_block_size=2 is not supported, only None"),
        ("retnet", {"use_output_gate": False}, "use_output_gate=False is not supported, only True"),
        ("retnet", {"hidden_act": "powlu"}, "hidden_act='powlu' is not supported, only 'swish'"),
        ("comba", {"use_output_gate": False}, "use_output_gate=False is not supported, only True"),
        ("comba", {"num_v_heads": 4}, "num_v_heads=4 is not supported, only None or 2"),
        ("delta_net", {"use_gate": True}, "use_gate=True is not supported, only False"),
        ("delta_net", {"use_beta": False}, "use_beta=False is not supported, only True"),
        ("delta_net", {"use_short_conv": False}, "use_short_conv=False is not supported, only True"),
        ("delta_net", {"qk_norm": "sum"}, "qk_norm='sum' is not supported, only 'l2'"),
        ("delta_net", {"qk_activation": "elu"}, "qk_activation='elu' is not supported, only 'silu'"),
        ("gated_deltanet", {"use_gate": False}, "use_gate=False is not supported, only True"),
        (
            "gated_deltanet",
            {"output_gate_activation": "sigmoid"},
            "output_gate_activation='sigmoid' is not supported, only 'swish' or 'silu'",
        ),
        ("gated_deltaproduct", {"use_output_gate": False}, "use_output_gate=False is not supported, only True"),
        ("gated_deltaproduct", {"conv_bias": True}, "settings that are unknown for model_type='gated_deltaproduct'"),
        ("kda", {"safe_gate": True, "lower_bound": -5}, "safe_gate=True is not supported, only False"),
        ("kda", {"lower_bound": -5}, "lower_bound=-5 is not supported, only None"),
        ("rwkv7", {"value_dim": [16, 32]}, r"value_dim=\[16, 32\] is not supported, only one width for all layers"),
        ("rwkv7", {"head_dim": 5}, "head_dim=5 and num_heads=None are not supported with hidden_size=16, only a divisor of it"),
        ("rwkv7", {"hidden_act": "relu"}, "hidden_act='relu' is not supported, only 'sqrelu'"),
        ("rwkv6", {"norm_bias": False}, "norm_bias=False is not supported, only True"),
        ("mamba", {"use_conv_bias": False}, "use_conv_bias=False is not supported, only True"),
        ("mamba2", {"num_heads": 3}, r"num_heads=3 of head_dim=16 are not expand \* hidden_size = 32 channels"),
        ("minimax", {"num_local_experts": 32}, "num_local_experts=32 is not supported, only 1"),
        ("minimax", {"mlp_alpha_factor": 2}, "mlp_alpha_factor=2: only equal ones are supported"),
        ("minimax", {"mlp_beta_factor": 2}, "mlp_beta_factor=2 is not supported, only 1"),
        ("minimax", {"layer_types": ["full_attention"]}, r"layer_types=\['full_attention'\], wanted 2 of 'linear_attention' and"),
        ("minimax", {"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters=\{'rope_type': 'yarn'\} is not supported"),
        ("minimax", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "is not supported, only rope_theta, with"),
        ("kimi_linear", {"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported, only False"),
        (
            "kimi_linear",
            {"linear_attn_config": {"gate_lower_bound": -5.0}},
            r"linear_attn_config has unknown settings \{'gate_lower_bound': -5.0\}; known are full_attn_layers",
        ),
        ("kimi_linear", {"layer_types": ["kda", "mla"]}, r"layer_types=\['kda', 'mla'\], wanted 2 of 'linear_attention' and"),
        ("olmo_hybrid", {"layer_types": ["linear_attention"]}, r"layer_types=\['linear_attention'\], wanted 2 of"),
        ("olmo_hybrid", {"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters=\{'rope_type': 'yarn'\} is not supported"),
        ("qwen3_5_text", {"attn_output_gate": False}, "attn_output_gate=False is not supported, only True"),
        ("qwen3_5_text", {"rope_parameters": {"factor": 2}}, "is not supported, only rope_theta and partial_rotary_factor, with"),
        ("recurrent_gemma", {"attention_bias": True}, "attention_bias=True is not supported, only False"),
        ("recurrent_gemma", {"block_types": ["mlp"]}, r"block_types=\['mlp'\] is not supported, only 'recurrent' and 'attention'"),
        ("recurrent_gemma", {"head_dim": 4}, "head_dim=4 is not supported, only 8"),
        ("rwkv", {"attention_hidden_size": 24}, "attention_hidden_size=24 is not supported, only 16"),
        ("xlstm", {"norm_eps": 1e-5}, "norm_eps=1e-05 is not supported, only 1e-06"),
        ("xlstm", {"weight_mode": "fused"}, "weight_mode='fused' is not supported, only 'single'"),
        ("xlstm", {"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported, only False"),
    ],
)
def test_what_an_architecture_cannot_follow_is_refused(tmp_path, model_type, changes, message):
    with pytest.raises(convert.ConvertError, match=message):
        convert.load(write(tmp_path, {}, ARCHITECTURES.get(model_type, {}) | {"model_type": model_type} | changes))


def test_a_truncated_file_is_reported(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(convert.ConvertError, match=r"model.safetensors is damaged or incomplete .*: fetch it again"):
        convert.load(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(convert.ConvertError, match=r"nowhere/config.json does not exist"):
        convert.load(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(convert.ConvertError, match=r"model.safetensors does not exist; pytorch_model.bin must be converted"):
        convert.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(convert.ConvertError, match=r"config.json is damaged: wanted a JSON object"):
        convert.load(folder)


def test_an_index_that_names_missing_tensors_is_refused(tmp_path):
    folder = write(tmp_path / "model", mamba_tensors(), shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(convert.ConvertError, match="names tensors that are not there: ghost in model-00001"):
        convert.load(folder)


INDEX = "model.safetensors.index.json"


def test_a_tensor_is_read_from_the_file_that_the_index_names_or_refused(tmp_path):
    """A stale copy of a tensor in a second file, and a file that has what the index places elsewhere."""
    folder = write(tmp_path / "model", mamba_tensors(), shards=2)
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    first, second = sorted(set(names.values()))
    tensor = next(name for name, file in names.items() if file == first)
    held = load_file(folder / second)
    save_file(held | {tensor: 0 * mamba_tensors()[tensor]}, folder / second)
    wanted = rf"does not name these tensors for the files that hold them: {re.escape(tensor)} in {second}"
    with pytest.raises(convert.ConvertError, match=wanted):
        convert.load(folder)
    save_file({name: x for name, x in load_file(folder / first).items() if name != tensor}, folder / first)
    with pytest.raises(convert.ConvertError, match=rf"names tensors that are not there: {re.escape(tensor)} in {first}"):
        convert.load(folder)


def test_files_that_the_index_does_not_name_are_not_read_except_that_two_models_are_refused(folder, tmp_path):
    shards = write(tmp_path / "shards", mamba_tensors(), shards=2)
    stale = {name: np.zeros_like(x) for name, x in mamba_tensors().items()}
    save_file(stale, shards / "consolidated.safetensors")
    assert_same(convert.load(shards), convert.load(folder))
    save_file(stale, shards / "model.safetensors")
    with pytest.raises(convert.ConvertError, match=r"holds model.safetensors and .* does not name it: remove"):
        convert.load(shards)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'])
def test_an_index_without_one_file_per_tensor_is_damaged(tmp_path, content):
    folder = write(tmp_path / "model", mamba_tensors(), shards=2)
    (folder / INDEX).write_text(content)
    with pytest.raises(convert.ConvertError, match=r"index.json is damaged"):
        convert.load(folder)


@pytest.mark.parametrize(("dtype", "name"), [(np.int8, "I8"), (bool, "BOOL"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")])
def test_tensors_of_integers_and_of_eight_bits_are_refused_by_name(tmp_path, dtype, name):
    """Read as if they were weights they would give a model of small whole numbers."""
    tensors = mamba_tensors()
    tensors |= {FIRST + "in_proj.weight": tensors[FIRST + "in_proj.weight"].astype(dtype)}
    with pytest.raises(convert.ConvertError, match=rf"config.json:\s+{FIRST}in_proj.weight is {name}, wanted F64, F32, F16, BF16$"):
        convert.load(write(tmp_path / "model", tensors))


def test_without_safetensors_the_extra_is_named(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "safetensors":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'seqzoo\[convert\]'"):
        convert.load(folder)


def test_the_page_runs_and_names_every_architecture(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mamba-130m-hf", mamba_tensors())
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)), names)
    assert names["model"](TOKENS)[0].shape == (2, 9, 11) and names["layer"](jnp.ones((1, 3, 16)))[0].shape == (1, 3, 16)
    which = page.split("## Comparison")[0]
    assert set(re.findall(r"^\| `(\w+)` \| `\w+For\w+`", which, flags=re.MULTILINE)) == set(convert.names())
