"""Imported models against transformers: the same checkpoint folder gives the same logits, gradients and continuations."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from helpers.checkpoint_folders import write
from helpers.released import LOADED
from helpers.tolerances import RELATIVE, assert_close, error
from seqzoo import convert

from .models import ARCHITECTURES, Pair, advance, gradients, greedy, pair, saved, tokens

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request, torch, tmp_path_factory):
    return pair(torch, request.param, tmp_path_factory.mktemp(request.param))


def test_logits_equal_those_of_the_other_project(torch, models):
    prompt = tokens(2, 70)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt))


def test_gradients_to_every_weight_equal_those_of_the_other_project(torch, models, tmp_path, monkeypatch):
    """Gated delta rules of theirs go token by token: in chunks differences of running sums lose the digits of decays' gradients."""
    module = sys.modules[type(models.theirs).__module__]
    if hasattr(module, "torch_chunk_gated_delta_rule"):
        monkeypatch.setattr(module, "torch_chunk_gated_delta_rule", module.torch_recurrent_gated_delta_rule)
    got, wanted, _ = gradients(torch, models, tokens(2, 41), tmp_path)
    # Against float64, OLMo-hybrid's worst gradient is off by 1.1e-5 in their float32 and by 2.3e-5 in ours.
    assert_close(got, wanted, tolerance=3 * RELATIVE["float32"])


def test_greedy_tokens_equal_those_of_the_other_project(torch, models):
    """Ours by prefill and single steps; theirs by full passes, since not all of their caches continue what they hold."""
    prompt = row = tokens(2, 20, seed=1)
    for _ in range(16):
        row = np.concatenate([row, models.logits(torch, row)[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(greedy(models.ours, prompt, 16), row[:, 20:])


def test_a_row_in_pieces_gives_their_full_pass(torch, models):
    prompt, state, pieces = tokens(2, 70), models.ours.init_state(2, 70), []
    for piece in np.split(prompt, [40, 53], axis=1):
        logits, state = advance(models.ours, piece, state)
        pieces.append(logits)
    assert_close(jnp.concatenate(pieces, axis=1), models.logits(torch, prompt))


def test_packed_documents_give_what_they_give_alone(torch, models):
    documents = [tokens(1, length, seed=length) for length in (1, 30, 9)]
    padding = np.zeros((1, 3), np.int64)
    row = np.concatenate([documents[0], padding, documents[1], documents[2]], axis=1)
    ids = np.repeat(np.array([1, 0, 2, 3], np.int32), (1, 3, 30, 9))[None]
    logits = np.asarray(models.ours(row, segment_ids=ids)[0])
    for i, document in enumerate(documents):
        assert_close(logits[:, ids[0] == i + 1], models.logits(torch, document), what=f"document {i + 1}")


def test_transformers_mamba_ignores_the_state_of_pieces_and_ours_does_not(torch, tmp_path):
    """transformers' Mamba starts every piece of more than one token from an empty state; only the convolution continues."""
    models = pair(torch, "mamba", tmp_path)
    prompt = tokens(2, 40)
    wanted = models.logits(torch, prompt)[:, 25:]
    _, state = models.ours(prompt[:, :25], state=models.ours.init_state(2))
    assert_close(models.ours(prompt[:, 25:], state=state)[0], wanted)
    with torch.no_grad():
        cache = models.theirs(torch.from_numpy(prompt[:, :25]), use_cache=True).cache_params
        continued = models.theirs(torch.from_numpy(prompt[:, 25:]), use_cache=True, cache_params=cache).logits.numpy()
    assert error(continued, wanted) > 1e-2


# fla's models are not in transformers; xLSTM's widths are multiples of 64 there.
READ_BY_TRANSFORMERS = [name for name in LOADED if not name.startswith(("flash-linear-attention", "NX-AI"))]


@pytest.mark.parametrize("source", READ_BY_TRANSFORMERS)
def test_the_keys_of_a_released_model_mean_what_they_mean_to_transformers(torch, tmp_path, source):
    """Both projects read one folder. Of a model that also reads images, the text model is compared."""
    import transformers

    released = LOADED[source]
    write(tmp_path, released.tensors(), released.config)
    kind = getattr(transformers, released.config["architectures"][0].replace("ForConditionalGeneration", "ForCausalLM"))
    theirs, prompt = kind.from_pretrained(tmp_path, dtype=torch.float32).eval(), tokens(2, 30) % 11
    assert_close(convert.load(tmp_path)(prompt)[0], Pair(None, theirs, tmp_path).logits(torch, prompt))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mamba", {"tie_word_embeddings": False, "time_step_rank": 5, "conv_kernel": 3, "expand": 3}),
        ("mamba2", {"tie_word_embeddings": True, "n_groups": 4}),
        ("mamba2", {"time_step_limit": (0.01, 0.05)}),
        ("mamba2", {"time_step_limit": (0.01, float("inf"))}),
        ("minimax", {"layer_types": ["full_attention"] * 3, "head_dim": None, "num_key_value_heads": 4}),
        ("recurrent_gemma", {"block_types": ["attention", "recurrent"], "num_key_value_heads": 2, "logits_soft_cap": 2.0}),
        (
            "qwen3_5_text",
            {
                "num_hidden_layers": 4,
                "layer_types": None,
                "head_dim": 8,
                "attention_bias": True,
                "linear_num_key_heads": 4,
                "linear_conv_kernel_dim": 3,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 100.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [1, 1, 0],
                },
                "tie_word_embeddings": True,
            },
        ),
        (
            "olmo_hybrid",
            {
                "num_key_value_heads": None,
                "attention_bias": True,
                "linear_num_key_heads": 4,
                "linear_key_head_dim": 8,
                "linear_allow_neg_eigval": False,
                "rms_norm_eps": 1e-3,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
                "tie_word_embeddings": True,
            },
        ),
        ("olmo_hybrid", {"rope_parameters": None}),
        ("kimi_linear", {"linear_num_heads": 2, "linear_head_dim": 24, "linear_conv_kernel_dim": 2, "rms_norm_eps": 1e-3}),
        # Halving the residual stream on the way changes the weight of the epsilon, and nothing else.
        ("rwkv", {"num_hidden_layers": 3, "rescale_every": 2, "layer_norm_epsilon": 1e-8, "intermediate_size": 40}),
        ("xlstm", {"num_heads": 2, "gate_soft_cap": 1.0, "qk_dim_factor": 1.0}),
    ],
)
def test_other_settings_are_followed(torch, tmp_path, name, changes):
    models, prompt = pair(torch, name, tmp_path, **changes), tokens(2, 30)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt))


def test_a_recurrent_gemma_that_starts_at_a_position_equals_that_of_transformers(torch, tmp_path):
    """Its first token is then no start: what it writes is scaled as that of any other token."""
    models, prompt = pair(torch, "recurrent_gemma", tmp_path), tokens(2, 30)
    positions = np.broadcast_to(np.arange(5, 35), prompt.shape)
    wanted = models.logits(torch, prompt, position_ids=torch.from_numpy(positions.copy()))
    assert error(wanted, models.logits(torch, prompt)) > 1e-3
    assert_close(models.ours(prompt, positions=positions)[0], wanted)


def test_sharded_files_of_transformers_are_read(torch, tmp_path):
    models = pair(torch, "minimax", tmp_path / "one")
    models.theirs.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    both = (nnx.to_pure_dict(nnx.state(model)) for model in (models.ours, convert.load(tmp_path / "several")))
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("name", "layer", "path"),
    [
        ("mamba2", 1, "backbone.layers.1.mixer"),
        ("minimax", 2, "model.layers.2.self_attn"),
        ("qwen3_5_text", 2, "model.layers.2.linear_attn"),
        ("olmo_hybrid", 2, "model.layers.2.linear_attn"),
    ],
)
def test_a_single_layer_equals_that_of_transformers(torch, tmp_path, name, layer, path):
    arguments = {"position_embeddings": None, "attention_mask": None} if name == "minimax" else {}
    assert_layer_is_theirs(torch, pair(torch, name, tmp_path).theirs.get_submodule(path), tmp_path, layer, **arguments)


def assert_layer_is_theirs(torch, theirs, folder, layer, **arguments):
    x = np.random.default_rng(0).normal(size=(2, 30, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x), **arguments)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert_close(convert.load_mixer(folder, layer)(jnp.asarray(x))[0], wanted.numpy())


def test_single_layers_of_an_unsupported_kimi_linear_equal_those_of_transformers(torch, tmp_path):
    """Latent attention and a mixture of experts, as in the released models, around layers of Kimi delta attention."""
    import transformers

    kind, settings = ARCHITECTURES["kimi_linear"]
    settings = settings | {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "mlp_layer_types": ["dense", "dense", "sparse"],
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    }
    theirs = saved(torch, getattr(transformers, kind), settings, tmp_path)
    for layer in (0, 2):
        assert_layer_is_theirs(torch, theirs.model.layers[layer].self_attn, tmp_path, layer)
    with pytest.raises(
        convert.ConvertError, match=r"latent attention .* in layers \[1\] and a mixture of experts .* in layers \[2\]"
    ):
        convert.load(tmp_path)


def test_keys_and_values_of_olmo_hybrid_may_have_other_widths_in_files_as_they_were_released(torch, tmp_path):
    """transformers 5.23 saves the three convolutions as thirds of the one it makes of them; released files have their own rows."""
    import transformers

    kind, settings = ARCHITECTURES["olmo_hybrid"]
    settings = settings | {"linear_key_head_dim": 6, "linear_value_head_dim": 12}
    theirs = saved(torch, getattr(transformers, kind), settings, tmp_path)
    with pytest.raises(convert.ConvertError, match=r"\(24, 1, 4\): wanted 12 channels; transformers saves thirds"):
        convert.load(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    file["model.layers.1.post_attention_layernorm.weight"] = file.pop("model.layers.1.feedforward_layer_norm.weight")
    for layer in ("model.layers.0", "model.layers.2"):
        names = [f"{layer}.linear_attn.{name}_conv1d.weight" for name in "qkv"]
        kernels = np.split(np.concatenate([file[name] for name in names]), [12, 24])
        file |= dict(zip(names, map(np.ascontiguousarray, kernels), strict=True))
    save_file(file, tmp_path / "model.safetensors")
    prompt = tokens(2, 30)
    assert_close(convert.load(tmp_path)(prompt)[0], Pair(None, theirs, tmp_path).logits(torch, prompt))
