"""Released models: every key of their config.json is followed, known to have no effect, or the reason why they are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.checkpoint_folders import write
from helpers.released import KIMI_LINEAR_48B, LOADED, MINIMAX_TEXT_01, REFUSED, XLSTM_7B
from seqzoo import convert
from seqzoo.convert.architecture import UNSUPPORTED, model_mapping
from seqzoo.convert.checkpoint import Config

TOKENS = np.random.default_rng(1).integers(0, 11, (2, 9))


@pytest.mark.parametrize("source", LOADED)
def test_a_released_model_is_read(tmp_path, source):
    model = convert.load(write(tmp_path, LOADED[source].tensors(), LOADED[source].config))
    logits = jax.jit(lambda model, tokens: model(tokens)[0])(model, TOKENS)
    assert logits.shape == (2, 9, 11) and bool(jnp.all(jnp.isfinite(logits)))


@pytest.mark.parametrize("source", REFUSED)
def test_a_released_model_that_cannot_be_read_is_refused_with_the_reason_in_one_line(tmp_path, source):
    config, reason = REFUSED[source]
    with pytest.raises(convert.ConvertError, match=reason) as error:
        convert.load(write(tmp_path, {}, config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("NX-AI/xLSTM-7b", {"add_qk_norm": True}, "add_qk_norm=True is not supported, only False"),
        ("NX-AI/xLSTM-7b", {"add_post_norm": True}, "add_post_norm=True is not supported, only False"),
        ("NX-AI/xLSTM-7b", {"add_post_blocks_norm": False}, "add_post_blocks_norm=False is not supported, only True"),
        ("NX-AI/xLSTM-7b", {"cell_norm_eps": 1e-5}, "cell_norm_eps=1e-05 is not supported, only 1e-06"),
        ("NX-AI/xLSTM-7b", {"hidden_size": 32}, "hidden_size=32, embedding_dim=16: wanted one value for all of them"),
        ("NX-AI/xLSTM-7b", {"mlstm_round_up_to_multiple_of": 64}, "only a divisor of the widths of keys and values, 8 and 16"),
        ("google/recurrentgemma-2b", {"block_types": ["recurrent"]}, "_block_types=.* is not supported, only"),
        ("google/recurrentgemma-2b", {"rope_scaling": {"factor": 2}}, "rope_scaling={'factor': 2} is not supported, only None"),
        ("state-spaces/mamba-370m-hf", {"architectures": ["Mamba"]}, r"architectures=\['Mamba'\] is not supported for model_type"),
        (
            "state-spaces/mamba-370m-hf",
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config of quant_method='fp8'",
        ),
        ("state-spaces/mamba-370m-hf", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg={'layer': 'Mamba2'} is not supported, only {}"),
        ("state-spaces/mamba-370m-hf", {"d_model": 32}, "d_model=32 is not supported, only 16"),
        ("state-spaces/mamba-370m-hf", {"n_layer": 3}, "n_layer=3 is not supported, only 2"),
        ("state-spaces/mamba-370m-hf", {"dt_rank": 5}, "dt_rank=5 is not supported, only 'auto' or 3"),
        ("state-spaces/mamba-1.4b-hf", {"rms_norm": False}, "rms_norm=False is not supported, only True"),
        ("mistralai/Mamba-Codestral-7B-v0.1", {"rms_norm": False}, "rms_norm=False is not supported, only True"),
        ("mistralai/Mamba-Codestral-7B-v0.1", {"intermediate_size": 48}, "intermediate_size=48 is not supported, only 32"),
        ("allenai/Olmo-Hybrid-7B", {"linear_use_gate": False}, "linear_use_gate=False is not supported, only True"),
        ("flash-linear-attention's GLA in 2024", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05 is not supported, only 1e-06"),
    ],
)
def test_a_value_that_would_change_the_numbers_is_refused_by_name(source, changes, message):
    with pytest.raises(convert.ConvertError, match=message):
        model_mapping(Config(LOADED[source].config | changes, "config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_gate_type": "sigmoid"}, "config.json, text_config: output_gate_type='sigmoid' is not supported, only 'swish'"),
        ({"mlp_only_layers": [1]}, r"text_config: mlp_only_layers=\[1\] is not supported, only \[\]"),
        ({"a_new_trick": 7}, "text_config has settings that are unknown for model_type='qwen3_5_text' .*: a_new_trick=7"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=True is not supported, only False"),
    ],
)
def test_settings_of_the_text_model_of_qwen_are_refused_as_those_of_any_other(changes, message):
    config = LOADED["Qwen/Qwen3.5-0.8B"].config
    config = config | {"text_config": config["text_config"] | changes}
    with pytest.raises(convert.ConvertError, match=message):
        model_mapping(Config(config, "config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "rotary_dim=4 is not supported, only 8"),
        ({"rotary_dim": 8, "shared_intermediate_size": 24}, "shared_intermediate_size=24 is not supported, only 0"),
        ({"rotary_dim": 8, "postnorm": False}, "postnorm=False is not supported, only True"),
    ],
)
def test_a_minimax_with_one_expert_is_still_checked(changes, message):
    with pytest.raises(convert.ConvertError, match=message):
        model_mapping(Config(MINIMAX_TEXT_01 | {"num_local_experts": 1} | changes, "config.json"))


def test_a_layer_of_the_released_kimi_linear_is_described():
    assert model_mapping(Config(KIMI_LINEAR_48B, "config.json")).model["layers"][0].startswith("kda(heads=2, expand_k=0.75")


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [([0.0, float("inf")], (0.0, None)), ([0.0, {"__float__": "Infinity"}], (0.0, None)), ([0.001, 0.1], (0.001, 0.1))],
)
def test_the_limits_of_mamba2_steps_are_followed_in_each_spelling(limit, wanted):
    config = LOADED["mistralai/Mamba-Codestral-7B-v0.1"].config | {"time_step_limit": limit}
    (spec,) = model_mapping(Config(config, "config.json")).model["layers"]
    assert f"dt_limit={wanted})" in spec


def test_the_size_of_xlstm_7b_comes_from_its_old_names():
    made = model_mapping(Config(XLSTM_7B, "config.json")).model
    assert (made["d_model"], made["depth"], made["channel"]) == (16, 2, "swiglu(hidden=44)")


def test_the_pattern_of_recurrentgemma_2b_comes_from_its_old_name():
    config = LOADED["google/recurrentgemma-2b"].config | {"_block_types": ["attention", "recurrent"]}
    attention, recurrent = model_mapping(Config(config, "config.json")).model["layers"]
    assert attention.startswith("softmax(") and recurrent.startswith("rg_lru(")


def test_no_model_type_is_both_supported_and_not():
    assert not set(UNSUPPORTED) & set(convert.names())
