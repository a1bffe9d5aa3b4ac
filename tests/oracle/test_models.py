"""Imported models against transformers: the same checkpoint folder gives the same logits, gradients and continuations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close, error

from seqzoo import convert

from .models import FAMILIES, advance, gradients, greedy, pair, tokens

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, torch, tmp_path_factory):
    return pair(torch, request.param, tmp_path_factory.mktemp(request.param))


def test_the_logits_are_theirs(torch, models):
    prompt = tokens(2, 70)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt))


def test_the_gradient_of_the_loss_to_every_weight_is_theirs(torch, models, tmp_path):
    got, wanted, _ = gradients(torch, models, tokens(2, 41), tmp_path)
    assert_close(got, wanted)


def test_the_greedy_continuation_is_theirs(torch, models):
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


def test_where_mamba_is_continued_in_pieces_ours_holds(torch, tmp_path):
    """transformers' Mamba starts every piece of more than one token from an empty state; the convolution alone goes on."""
    models = pair(torch, "mamba", tmp_path)
    prompt = tokens(2, 40)
    wanted = models.logits(torch, prompt)[:, 25:]
    _, state = models.ours(prompt[:, :25], state=models.ours.init_state(2))
    assert_close(models.ours(prompt[:, 25:], state=state)[0], wanted)
    with torch.no_grad():
        cache = models.theirs(torch.from_numpy(prompt[:, :25]), use_cache=True).cache_params
        continued = models.theirs(torch.from_numpy(prompt[:, 25:]), use_cache=True, cache_params=cache).logits.numpy()
    assert error(continued, wanted) > 1e-2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mamba", {"tie_word_embeddings": False, "time_step_rank": 5, "conv_kernel": 3, "expand": 3}),
        ("mamba2", {"tie_word_embeddings": True, "n_groups": 4}),
        ("minimax", {"layer_types": ["full_attention"] * 3, "head_dim": None, "num_key_value_heads": 4}),
        ("recurrent_gemma", {"block_types": ["attention", "recurrent"], "num_key_value_heads": 2, "logits_soft_cap": 2.0}),
        # Halving the residual stream on the way changes the weight of the epsilon, and nothing else.
        ("rwkv", {"num_hidden_layers": 3, "rescale_every": 2, "layer_norm_epsilon": 1e-8, "intermediate_size": 40}),
        ("xlstm", {"num_heads": 2, "gate_soft_cap": 1.0, "qk_dim_factor": 1.0}),
    ],
)
def test_other_settings_are_followed(torch, tmp_path, name, changes):
    models, prompt = pair(torch, name, tmp_path, **changes), tokens(2, 30)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt))


def test_the_several_files_that_they_write_are_read(torch, tmp_path):
    models = pair(torch, "minimax", tmp_path / "one")
    models.theirs.save_pretrained(tmp_path / "several", max_shard_size="20KB")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    both = (nnx.to_pure_dict(nnx.state(model)) for model in (models.ours, convert.load(tmp_path / "several")))
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(("name", "layer", "path"), [("mamba2", 1, "backbone.layers.1"), ("minimax", 2, "model.layers.2")])
def test_one_layer_alone_is_theirs(torch, tmp_path, name, layer, path):
    models = pair(torch, name, tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 30, 32)).astype(np.float32)
    theirs = models.theirs.get_submodule(path)
    theirs = theirs.mixer if name == "mamba2" else theirs.self_attn
    with torch.no_grad():
        arguments = {} if name == "mamba2" else {"position_embeddings": None, "attention_mask": None}
        wanted = theirs(torch.from_numpy(x), **arguments)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert_close(convert.load_mixer(tmp_path, layer)(jnp.asarray(x))[0], wanted.numpy())
