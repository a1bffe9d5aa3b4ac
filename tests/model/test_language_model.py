"""The model obeys the mixers' law, and scan, loop and rematerialisation are the same function."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import RELATIVE, assert_close
from seqzoo.model import LanguageModel
from seqzoo.testing import matmul_flops
from seqzoo.training.loss import token_losses

VOCAB, WIDTH, LENGTH = 11, 16, 24
HYBRID = {"layers": ("softmax(window=5, heads=2)", "mamba(state=4)"), "depth": 3, "learned_positions": 20}
IDS = np.array([[0, 1, 1, 1, 0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0, 0], [1] * 14 + [2] * 10], np.int32)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, IDS.shape).astype(np.int32)


def build(**settings):
    """A model whose every parameter is perturbed."""
    model = LanguageModel(VOCAB, WIDTH, **{**HYBRID, **settings}, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.05 * noise.standard_normal(p.shape).astype(np.float32), model)


def run(model, tokens, **kwargs):
    return jax.jit(lambda model, tokens, kwargs: model(tokens, **kwargs))(model, tokens, kwargs)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def whole(model):
    return run(model, TOKENS, state=model.init_state(2, LENGTH), segment_ids=IDS)


@pytest.mark.parametrize("cut", [pytest.param(4, marks=pytest.mark.slow), 12])
def test_any_split_gives_the_whole(model, whole, cut):
    first, state = run(model, TOKENS[:, :cut], state=model.init_state(2, LENGTH), segment_ids=IDS[:, :cut])
    rest, state = run(model, TOKENS[:, cut:], state=state, segment_ids=IDS[:, cut:])
    real = (IDS != 0)[..., None]
    joined = jnp.concatenate([first, rest], axis=1)
    assert_close((jnp.where(real, joined, 0), state), (jnp.where(real, whole[0], 0), whole[1]))


def test_decoding_gives_the_whole(model, whole):
    def step(state, token):
        logits, state = model(token[0][:, None], state=state, segment_ids=token[1][:, None])
        return state, logits[:, 0]

    state, logits = jax.jit(lambda s: jax.lax.scan(step, s, (TOKENS.T, IDS.T)))(model.init_state(2, LENGTH))
    real = (IDS != 0)[..., None]
    assert_close((jnp.where(real, jnp.moveaxis(logits, 0, 1), 0), state), (jnp.where(real, whole[0], 0), whole[1]))


def test_a_packed_document_gives_what_it_gives_alone(model, whole):
    alone, _ = run(model, TOKENS[:1, 13:22])
    assert_close(alone, whole[0][:1, 13:22])


def test_a_position_beyond_the_learned_ones_gives_nan(model):
    assert np.all(np.isnan(run(model, TOKENS)[0][:, 20:]))
    assert np.all(np.isfinite(run(model, TOKENS[:, :20])[0]))


def value_and_gradients(**settings):
    """Loss and gradients of a model with two repeats of its layer pattern and a remainder."""

    def loss(model):
        return jnp.sum(jax.nn.log_softmax(model(TOKENS, segment_ids=IDS)[0])[..., 0] * (IDS != 0))

    model = build(layers=("linear(heads=1)", "softmax(heads=1)"), depth=5, **settings)
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(model))


@pytest.fixture(scope="module")
def scanned():
    return value_and_gradients()


@pytest.mark.parametrize(
    "settings", [{"stack": "loop"}, {"remat": "full"}, pytest.param({"remat": "dots"}, marks=pytest.mark.slow)], ids=str
)
def test_scan_and_loop_and_every_remat_are_the_same_function(settings, scanned):
    assert_close(value_and_gradients(**settings), scanned)


def test_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = build(layers="softmax", depth=1), build(layers="softmax", depth=1, tie_embeddings=False)
    x = jnp.ones((1, 2, WIDTH))
    assert_close(tied.attend(x), x @ tied.embedding[...].T)
    assert_close(untied.attend(x), x @ untied.head.w[...])


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_the_vocabulary_are_in_no_logit_and_get_no_gradient(tied):
    """Whatever they hold. Losses, hits and gradients of all other parameters are those without them."""
    settings = {"layers": "linear(heads=1)", "depth": 1, "tie_embeddings": tied, "logits_soft_cap": 5.0, "learned_positions": None}
    padded, plain = build(**settings, pad_vocab=8), build(**settings)
    assert padded.embedding[...].shape == (16, WIDTH)

    def cut(model):
        """The parameters, as those of a model without padding."""
        found = nnx.to_pure_dict(nnx.state(model))
        found["embedding"] = found["embedding"][:VOCAB]
        if not tied:
            found["head"]["w"] = found["head"]["w"][:, :VOCAB]
        return found

    def loss(model):
        found = token_losses(model.attend_rows, model.hidden(TOKENS)[0], TOKENS[:, ::-1])
        return jnp.sum(found.cross_entropy + 0.1 * found.log_z**2), found

    plain = nnx.merge(nnx.graphdef(plain), cut(padded))
    (value, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(padded)
    (wanted_value, wanted), wanted_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(plain)
    assert_close((value, found, cut(gradient)), (wanted_value, wanted, nnx.to_pure_dict(nnx.state(wanted_gradient))))
    assert np.all(gradient.embedding[VOCAB:] == 0) and (tied or np.all(gradient.head.w[:, VOCAB:] == 0))
    logits = run(padded, TOKENS)[0]
    assert logits.shape == (*TOKENS.shape, VOCAB)
    assert_close(logits, run(plain, TOKENS)[0])
    outside = np.array([[VOCAB], [15], [16], [-1], [-VOCAB - 1], [3]])
    np.testing.assert_array_equal(np.isnan(run(padded, outside)[0]), np.isnan(run(plain, outside)[0]))


def test_a_padded_vocabulary_starts_as_one_that_is_not():
    plain, padded = (LanguageModel(VOCAB, WIDTH, tie_embeddings=False, pad_vocab=n, rngs=nnx.Rngs(0)) for n in (1, 8))
    np.testing.assert_array_equal(padded.embedding[...], np.pad(plain.embedding[...], [(0, 5), (0, 0)]))
    np.testing.assert_array_equal(padded.head.w[...], np.pad(plain.head.w[...], [(0, 0), (0, 5)]))
    np.testing.assert_array_equal(padded.norm.scale[...], plain.norm.scale[...])
    assert padded.flops(2, 9) == plain.flops(2, 9)


def test_dropout_needs_a_key_and_differs_between_keys():
    model = build(layers="softmax(dropout=0.5)", depth=2, dropout=0.3)
    tokens = TOKENS[:, :8]
    plain = run(model, tokens)[0]
    assert_close(run(model, tokens)[0], plain)
    keyed = [run(model, tokens, key=jax.random.key(seed))[0] for seed in (0, 1)]
    assert not np.allclose(keyed[0], plain) and not np.allclose(keyed[0], keyed[1])


RELEASED = {  # what some released models need
    "norm_eps": 1e-2,
    "normed_residual": True,
    "residual_scale": 1.5,
    "embedding_norm": True,
    "embedding_scale": 3.0,
    "logits_soft_cap": 2.0,
}


def test_the_settings_of_released_models_follow_their_formulas():
    model = build(layers=("gla(heads=2)", "gla"), depth=1, learned_positions=None, **RELEASED)
    block = model.stack.remainder.blocks()["0_gla"]

    def branch(x, norm, layer):
        normed = norm(x)
        return 1.5 * normed + layer(normed)[0]

    x = model.embedding_norm(3.0 * model.embedding[...][TOKENS])
    x = branch(branch(x, block.mixer_norm, block.mixer), block.channel_norm, block.channel)
    assert_close(run(model, TOKENS)[0], 2.0 * jnp.tanh(model.norm(x) @ model.embedding[...].T / 2.0))
    assert {norm.eps for norm in (model.embedding_norm, block.mixer_norm, block.channel_norm, model.norm)} == {1e-2}


def test_the_settings_of_released_models_keep_the_law():
    model = build(**RELEASED, learned_positions=None)
    whole = run(model, TOKENS)[0]
    first, state = run(model, TOKENS[:, :7], state=model.init_state(2, LENGTH))
    assert_close(jnp.concatenate([first, run(model, TOKENS[:, 7:], state=state)[0]], axis=1), whole)


def test_norms_may_follow_the_branches_of_some_layers():
    positions = ("post", "pre", "post")
    model = build(layers=("gla(heads=2)", "gla", "softmax"), norm_position=positions, depth=2, learned_positions=None)
    post, pre = model.stack.remainder.blocks().values()
    x = model.embedding[...][TOKENS]
    for norm, layer in ((post.mixer_norm, post.mixer), (post.channel_norm, post.channel)):
        x = x + norm(layer(x)[0])
    for norm, layer in ((pre.mixer_norm, pre.mixer), (pre.channel_norm, pre.channel)):
        x = x + layer(norm(x))[0]
    assert_close(run(model, TOKENS)[0], model.norm(x) @ model.embedding[...].T)


@pytest.mark.parametrize("norm_position", ["post", ("pre", "post")])
def test_post_norm_keeps_the_law(norm_position):
    model = build(norm_position=norm_position, learned_positions=None)
    whole = run(model, TOKENS)[0]
    first, state = run(model, TOKENS[:, :7], state=model.init_state(2, LENGTH))
    assert_close(jnp.concatenate([first, run(model, TOKENS[:, 7:], state=state)[0]], axis=1), whole)


def test_the_residual_stream_may_be_wider_than_the_computation_and_never_narrower():
    narrow = {"layers": "gla(heads=2)", "depth": 2, "learned_positions": None, "dtype": jnp.bfloat16}
    stream = lambda model: jax.eval_shape(lambda x: model.stack(x)[0], jnp.ones((1, 2, WIDTH), model.residual_dtype)).dtype
    assert stream(build(**narrow)) == jnp.bfloat16
    assert stream(build(**narrow, residual_dtype="float32")) == jnp.float32
    assert stream(build(**{**narrow, "dtype": jnp.float32}, residual_dtype="bfloat16")) == jnp.float32
    plain, wide = (run(build(**{**narrow, "dtype": dtype}, residual_dtype="float32"), TOKENS)[0] for dtype in (None, jnp.bfloat16))
    assert wide.dtype == jnp.float32
    assert_close(wide, plain, tolerance=RELATIVE["bfloat16"])


def test_flops_count_every_layer_and_the_head():
    model = LanguageModel(
        VOCAB, 32, layers=("linear(implementation='reference')",), depth=3, channel="gelu", stack="loop", rngs=nnx.Rngs(0)
    )
    counted = matmul_flops(jax.make_jaxpr(lambda tokens: model(tokens)[0])(TOKENS).jaxpr)
    assert abs(model.flops(*TOKENS.shape) / counted - 1) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "rsm"}, "LanguageModel: norm='rsm', wanted 'rms' or 'layer'"),
        ({"stack": "scann"}, "LanguageModel: stack='scann', wanted 'scan' or 'loop'"),
        ({"remat": "all"}, "LanguageModel: remat='all', wanted 'none' or 'full' or 'dots'"),
        ({"depth": 0}, "LanguageModel: depth=0, wanted int in [1, 4096]"),
        ({"layers": ()}, "depth=3 with 0 layer specs: wanted at least one of each"),
        ({"norm_position": "psot"}, "LanguageModel: norm_position='psot', wanted 'pre' or 'post' or a tuple of 'pre' or 'post'"),
        ({"norm_position": ("pre",)}, "norm_position=('pre',): wanted one, or one for each of 2 layer specs"),
        ({"norm_position": "post", "normed_residual": True}, "normed_residual=True with norm_position='post'"),
        ({"logits_soft_cap": 0}, "LanguageModel: logits_soft_cap=0, wanted number > 0 or None"),
        ({"dtype": "int8"}, "LanguageModel: dtype='int8', wanted a floating-point dtype such as 'bfloat16'"),
    ],
)
def test_a_wrong_setting_names_the_right_ones(settings, message):
    with pytest.raises(ValueError) as caught:
        build(**settings)
    assert message in str(caught.value)


def test_every_parameter_names_its_axes(model):
    _, params = nnx.split(model, nnx.Param)
    for path, variable in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        axes = variable.get_metadata().get("axes")
        stacked = "scanned" in jax.tree_util.keystr(path)
        assert axes is not None and len(axes) == variable[...].ndim - stacked, f"{jax.tree_util.keystr(path)}: axes {axes}"
