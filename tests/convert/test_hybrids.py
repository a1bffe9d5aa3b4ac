"""Checkpoints of hybrids with delta rules: their peculiarities.

That the functions are the same is the business of tests/oracle.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.checkpoint_folders import write
from seqzoo import convert
from seqzoo.convert import loader
from seqzoo.convert.architecture import model_mapping
from seqzoo.convert.checkpoint import Config

SMALL = {"hidden_size": 16, "vocab_size": 11, "intermediate_size": 24}
QWEN = SMALL | {"model_type": "qwen3_5_text", "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 6}
OLMO = SMALL | {"model_type": "olmo_hybrid", "num_hidden_layers": 3, "num_attention_heads": 2}
KIMI = SMALL | {  # as the released files spell it
    "model_type": "kimi_linear",
    "num_hidden_layers": 4,
    "num_experts": 8,
    "first_k_dense_replace": 1,
    "linear_attn_config": {
        "full_attn_layers": [2],
        "head_dim": 6,
        "kda_layers": [1, 3, 4],
        "num_heads": 2,
        "short_conv_kernel_size": 3,
    },
}


def mapping_of(config):
    return model_mapping(Config(config, "config.json"))


def kda_tensors(layer):
    """The tensors of one layer of Kimi delta attention, by name."""
    shapes = {f"{name}_proj.weight": (12, 16) for name in "qkv"} | {f"{name}_conv1d.weight": (12, 1, 3) for name in "qkv"}
    shapes |= {"f_a_proj.weight": (6, 16), "g_a_proj.weight": (6, 16), "f_b_proj.weight": (12, 6), "g_b_proj.weight": (12, 6)}
    shapes |= {"A_log": (1, 1, 2, 1), "dt_bias": (12,), "b_proj.weight": (2, 16), "o_norm.weight": (6,), "o_proj.weight": (16, 12)}
    random = np.random.default_rng(0)
    return {
        f"model.layers.{layer}.self_attn.{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }


def test_layers_of_kimi_delta_attention_are_read_out_of_a_model_that_has_more(tmp_path):
    tensors = kda_tensors(2)
    folder = write(tmp_path, tensors, KIMI)
    mixer = convert.load_mixer(folder, layer=2)
    at = lambda name: tensors[f"model.layers.2.self_attn.{name}"]
    np.testing.assert_array_equal(mixer.decay.a_log[...], at("A_log").reshape(2))
    np.testing.assert_array_equal(mixer.k_convolution.w[...], at("k_conv1d.weight")[:, 0].T)
    np.testing.assert_array_equal(mixer.gate.up.w[...], at("g_b_proj.weight").T)
    assert mixer.gate.bias is None and mixer(jnp.ones((1, 3, 16)))[0].shape == (1, 3, 16)
    lacks = r"latent attention \(layer_types 'full_attention'\) in layers \[1\] and a mixture of experts .* in layers \[1, 2, 3\]"
    with pytest.raises(convert.ConvertError, match=rf"config.json: multi-head {lacks} is not supported; load_mixer reads single"):
        convert.load(folder)
    with pytest.raises(convert.ConvertError, match=rf"layer=1: .*{lacks}"):
        convert.load_mixer(folder, layer=1)


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"mlp_layer_types": ["dense"] * 4}, "latent attention .* in layers \\[1\\] is not supported"),
        ({"layer_types": ["linear_attention"] * 4}, "json: a mixture of experts .* in layers \\[1, 2, 3\\] is not supported"),
    ],
)
def test_only_unsupported_layers_are_named(tmp_path, changes, lacks):
    with pytest.raises(convert.ConvertError, match=lacks):
        convert.load(write(tmp_path, {}, KIMI | changes))


def test_a_kimi_linear_may_have_only_layers_of_kimi_delta_attention():
    made = mapping_of(KIMI | {"layer_types": ["linear_attention"] * 4, "first_k_dense_replace": 4})
    assert made.refused is None
    assert made.model["layers"] == ("kda(heads=2, expand_k=0.75, expand_v=0.75, conv_size=3, norm_eps=1e-05)",)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (QWEN, "LLLS"),
        (QWEN | {"full_attention_interval": 2}, "LS"),
        (QWEN | {"layer_types": ["full_attention"] * 4}, "S"),
        (OLMO, "LLS"),
        (OLMO | {"num_hidden_layers": 8}, "LLLS"),
    ],
)
def test_absent_layer_types_have_the_default_of_transformers(config, kinds):
    assert "".join("S" if spec.startswith("softmax") else "L" for spec in mapping_of(config).model["layers"]) == kinds


def test_blocks_of_an_olmo_hybrid_have_their_norms_where_their_kind_has_them():
    assert mapping_of(OLMO | {"num_hidden_layers": 8}).model["norm_position"] == ("pre", "pre", "pre", "post")


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({}, 10000.0),
        ({"rope_parameters": None}, 10000.0),
        ({"rope_parameters": {"rope_theta": None, "rope_type": "default"}}, None),
        ({"rope_parameters": {"rope_theta": 500}}, 500.0),
    ],
)
def test_an_olmo_hybrid_has_no_positions_if_rope_theta_is_null(changes, base):
    assert f"rope_theta={base}," in mapping_of(OLMO | changes).model["layers"][-1]


NORMS = ("post_attention_layernorm", "feedforward_layer_norm")


@pytest.mark.parametrize("held", NORMS)
def test_a_tensor_with_two_names_is_taken_under_either(tmp_path, monkeypatch, held):
    """A name that transformers changes on reading a file is changed in more places on writing one."""
    monkeypatch.setattr(loader, "SHOWN", 1000)
    norm = {f"model.layers.2.{held}.weight": np.ones(16, np.float32)}
    with pytest.raises(convert.ConvertError, match=r"layers.2.post_feedforward_layernorm.weight is missing") as error:
        convert.load(write(tmp_path, norm, OLMO))
    assert "layers.2.post_attention_layernorm" not in str(error.value) and "is unused" not in str(error.value)


def test_a_tensor_stored_under_both_of_its_names_is_reported_as_unused(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SHOWN", 1000)
    both = {f"model.layers.2.{name}.weight": np.ones(16, np.float32) for name in NORMS}
    with pytest.raises(convert.ConvertError, match=r"layers.2.feedforward_layer_norm.weight is unused"):
        convert.load(write(tmp_path, both, OLMO))


def test_rows_of_a_query_and_its_gate_alternate_by_head():
    made = mapping_of(QWEN | {"num_attention_heads": 3, "head_dim": 4, "num_key_value_heads": 1})
    rule = made.layers[3]["model.layers.3.self_attn.q_proj.weight"]
    q, gate = rule.make(np.arange(24)[:, None] * np.ones((1, 16)))
    assert rule.targets == ("mixer.q.w", "mixer.gate.w")
    np.testing.assert_array_equal(q[0], [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19])
    np.testing.assert_array_equal(gate[0], q[0] + 4)
