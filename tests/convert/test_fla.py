"""Checkpoints of flash-linear-attention: their peculiarities.

That the functions are the same is the business of tests/oracle/fla_kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.checkpoint_folders import write
from helpers.tolerances import assert_close
from seqzoo import convert, mixers
from seqzoo.convert.architecture import model_mapping
from seqzoo.convert.checkpoint import Config

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 11}
HGRN2 = SMALL | {"model_type": "hgrn2", "expand_ratio": 8, "intermediate_size": 24}
RWKV6 = SMALL | {"model_type": "rwkv6", "num_heads": 2, "intermediate_size": 24, "proj_low_rank_dim": 2, "gate_low_rank_dim": 3}
MATRICES = {"attn.q_proj": 16, "attn.f_proj": 16, "attn.i_proj": 16, "attn.o_proj": 16, "mlp.gate_proj": 24, "mlp.up_proj": 24}


def hgrn2_tensors():
    """The tensors of an HGRN2 with three layers, by name."""
    layer = {f"{name}.weight": (rows, 16) for name, rows in MATRICES.items()} | {"mlp.down_proj.weight": (16, 24)}
    layer |= {f"{name}.weight": (16,) for name in ("attn_norm", "mlp_norm", "attn.g_norm")}
    shapes = {
        "model.embeddings.weight": (11, 16),
        "lm_head.weight": (11, 16),
        "model.norm.weight": (16,),
        "model.lower_bounds": (3, 16),
    }
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(3) for name, shape in layer.items()}
    random = np.random.default_rng(0)
    return {name: (0.5 * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def test_each_layer_gets_its_bound_of_the_table(tmp_path):
    tensors = hgrn2_tensors()
    folder = write(tmp_path, tensors, HGRN2)
    logits = convert.load(folder).stack.scanned.blocks()["0_hgrn2"].mixer.bounded.logit[...]
    shares = jax.nn.softmax(tensors["model.lower_bounds"], axis=0)
    assert_close(jax.nn.sigmoid(logits), jnp.cumsum(shares, axis=0) - shares[:1])
    for layer in range(3):
        np.testing.assert_array_equal(convert.load_mixer(folder, layer).bounded.logit[...], logits[layer])


def test_the_bound_of_the_first_layer_is_zero_and_has_no_gradient(tmp_path):
    mixer = convert.load_mixer(write(tmp_path, hgrn2_tensors(), HGRN2), layer=0)
    z = jnp.linspace(-100, 100, 16)[None, None]
    for got, wanted in zip(mixer.bounded(z), (jax.nn.log_sigmoid(z), jax.nn.sigmoid(-z)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    gradient = jax.grad(lambda mixer: sum(jnp.sum(x) for x in mixer.bounded(z)))(mixer).bounded.logit[...]
    np.testing.assert_array_equal(gradient, 0)


def test_a_table_for_other_layers_is_refused_once(tmp_path):
    tensors = hgrn2_tensors() | {"model.lower_bounds": np.ones((4, 16), np.float32)}
    with pytest.raises(
        convert.ConvertError, match=r"its config.json:\s+model.lower_bounds has shape \(4, 16\): wanted a row for each of 3 layers$"
    ):
        convert.load(write(tmp_path, tensors, HGRN2))


def test_the_five_inputs_of_rwkv6_come_in_our_order(tmp_path):
    """Theirs: receptance, decay, key, value, gate."""
    rules = model_mapping(Config(RWKV6, "config.json")).layers[1]
    at = lambda name, x: rules[f"model.layers.1.attn.{name}"].make(x)[0]
    bias = np.arange(5.0)[:, None] * np.ones(16)
    np.testing.assert_array_equal(at("x_bias", bias)[:, 0], [1, 2, 3, 0, 4])
    down = np.repeat(np.arange(5.0), 2)[:, None] + np.arange(16) / 100
    np.testing.assert_array_equal(at("x_proj.0.linear.weight", down)[7], np.repeat([1, 2, 3, 0, 4], 2) + 7 / 100)
    np.testing.assert_array_equal(at("x_proj.2.weight", down.T)[:, 1, 7], np.array([1, 2, 3, 0, 4]) + 7 / 100)


RWKV7 = SMALL | {
    "model_type": "rwkv7",
    "head_dim": 8,
    "intermediate_size": 24,
    **{f"{name}_low_rank_dim": 3 for name in ("decay", "gate", "a", "v")},
}


def rwkv7_tensors():
    """The tensors of an RWKV-7 with three layers, by name; the first has no blend of values."""
    norms = ("attn_norm", "ffn_norm", "attn.g_norm")
    layer = {f"{name}.{part}": (16,) for name in norms for part in ("weight", "bias")}
    layer |= {f"attn.x_{name}": (1, 1, 16) for name in "rwkvag"} | {"attn.k_k": (16,), "attn.k_a": (16,), "attn.r_k": (2, 8)}
    layer |= {f"attn.{name}_proj.weight": (16, 16) for name in "rkvo"}
    for name in "wavg":
        layer |= {f"attn.{name}_lora.lora.0.weight": (3, 16), f"attn.{name}_lora.lora.2.weight": (16, 3)}
        layer |= {f"attn.{name}_lora.lora.2.bias": (16,)} if name != "g" else {}
    layer |= {"ffn.x_k": (16,), "ffn.key.weight": (24, 16), "ffn.value.weight": (16, 24)}
    shapes = {"model.embeddings.weight": (11, 16), "lm_head.weight": (11, 16), "model.norm.weight": (16,), "model.norm.bias": (16,)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(3) for name, shape in layer.items()}
    shapes |= {f"model.layers.0.pre_norm.{part}": (16,) for part in ("weight", "bias")}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("model.layers.0.attn.v_lora")}
    random = np.random.default_rng(0)
    return {name: (0.5 * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def test_the_first_layer_of_rwkv7_has_no_blend_of_values_and_ours_has_no_effect(tmp_path):
    tensors = rwkv7_tensors()
    model = convert.load(write(tmp_path, tensors, RWKV7))
    first = model.stack.scanned.blocks()["0_rwkv7"].mixer.first
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(first))):
        np.testing.assert_array_equal(leaf[0], 0)
        assert np.all(leaf[1:])
    np.testing.assert_array_equal(first.down.w[...][2], tensors["model.layers.2.attn.v_lora.lora.0.weight"].T)
    logits = model(np.arange(9)[None])[0]
    first.bias[...] = first.bias[...].at[0].set(1.0)
    np.testing.assert_array_equal(model(np.arange(9)[None])[0], logits)


def test_the_six_mixes_of_rwkv7_are_rows_of_one_parameter(tmp_path):
    tensors = rwkv7_tensors()
    folder = write(tmp_path / "a", tensors, RWKV7)
    wanted = np.concatenate([tensors[f"model.layers.1.attn.x_{name}"][0] for name in "rwkvag"])
    np.testing.assert_array_equal(convert.load_mixer(folder, 1).mix[...], wanted)
    del tensors["model.layers.1.attn.x_a"]
    with pytest.raises(convert.ConvertError, match=r"its config.json:\s+model.layers.1.attn.x_a is missing$"):
        convert.load(write(tmp_path / "b", tensors, RWKV7))
    tensors["model.layers.1.attn.x_a"] = np.ones((1, 1, 15), np.float32)
    with pytest.raises(convert.ConvertError, match=r"attn.x_r has shape \(1, 1, 16\): all input arrays must have the same"):
        convert.load(write(tmp_path / "c", tensors, RWKV7))


def test_the_factor_of_combas_feedback_acts_only_in_the_correction_of_queries():
    rules = model_mapping(Config(SMALL | {"model_type": "comba"}, "config.json")).layers[1]
    correction, share = rules["model.layers.1.attn.D"], rules["model.layers.1.attn.decay"]
    d, decay = np.array([0.5, 2.0], np.float32), np.array([0.0, -1.0], np.float32)
    assert correction.extra_inputs == ("model.layers.1.attn.decay",) and share.make(decay) == ()
    assert_close(correction.make(d, decay)[0], d / (1 + np.exp(-decay)))


@pytest.mark.parametrize(
    ("changes", "setting", "wanted"),
    [
        ({"model_type": "gla"}, "channel", "swiglu(hidden=256)"),
        ({"model_type": "gla", "hidden_size": 128}, "channel", "swiglu(hidden=512)"),
        ({"model_type": "retnet", "num_heads": 4, "hidden_size": 192}, "channel", "swiglu(hidden=256)"),
        ({"model_type": "rwkv6", "num_heads": 2}, "channel", "rwkv(expansion=4.0)"),
        ({"model_type": "rwkv6", "norm_first": False}, "embedding_norm", None),
        ({"model_type": "rwkv7", "hidden_size": 64}, "channel", "rwkv(expansion=4.0, gated=False)"),
        (
            {"model_type": "rwkv7", "hidden_size": 2048, "decay_low_rank_dim": None, "fuse_norm": False, "value_dim": 4096},
            "layers",
            (
                "rwkv7(heads=32, expand_v=2.0, decay_rank=128, rate_rank=64, value_rank=16, gate_rank=128, eps=0.00064, "
                "key_eps=1e-24)",
            ),
        ),
        (
            {"model_type": "gated_deltaproduct", "hidden_size": 1536},
            "layers",
            (
                "gated_deltaproduct(heads=6, expand_k=1.0, expand_v=2.0, steps=1, forget=False, negative_eigenvalues=False, "
                "conv_size=4, norm_eps=1e-06)",
            ),
        ),
        (
            {"model_type": "delta_net", "conv_size": 3},
            "layers",
            ("deltanet(heads=16, expand_k=1.0, expand_v=1.0, negative_eigenvalues=False, conv_size=3, norm_eps=1e-06)",),
        ),
        ({"model_type": "hgrn2", "hidden_size": 256}, "layers", ("hgrn2(heads=2)",)),
        ({"model_type": "hgrn2", "num_heads": 4, "expand_ratio": None}, "layers", ("hgrn2(heads=4)",)),
        ({"model_type": "hgrn2", "expand_ratio": 16, "use_lower_bound": False}, "layers", ("hgrn2(heads=1, lower_bound=0.0)",)),
    ],
)
def test_absent_settings_have_the_defaults_of_fla(changes, setting, wanted):
    assert model_mapping(Config(SMALL | changes, "config.json")).model.get(setting) == wanted


@pytest.mark.parametrize("model_type", ["gla", "retnet"])
def test_the_epsilon_of_the_output_norm_is_followed(model_type):
    made = model_mapping(Config(SMALL | {"model_type": model_type, "norm_eps": 1e-3}, "config.json")).model
    mixer = mixers.create(made["layers"][0], 16, rngs=nnx.Rngs(0))
    assert mixer.norm.eps == made["norm_eps"] == 1e-3
