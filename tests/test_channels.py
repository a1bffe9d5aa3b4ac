"""Channel mixers: what they compute, and the mixers' law where they look at other tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.published import sigmoid, wide
from helpers.tolerances import RELATIVE, assert_close
from seqzoo import channels
from seqzoo.kernels.common import sharding
from seqzoo.model import LanguageModel
from seqzoo.testing import matmul_flops

VOCAB, WIDTH, LENGTH = 11, 16, 24
IDS = np.array([[0, 1, 1, 1, 0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0, 0], [1] * 14 + [2] * 10], np.int32)
TOKENS = np.random.default_rng(0).integers(0, VOCAB, IDS.shape).astype(np.int32)
REAL = (IDS != 0)[..., None]


def perturbed(module):
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(np.float32), module)


RWKV = ("rwkv", "rwkv(gated=False)")


@pytest.fixture(scope="module", params=RWKV)
def model(request):
    """Two layers whose only memory, but for one number per channel, is the channel mixer's."""
    return perturbed(LanguageModel(VOCAB, WIDTH, layers=("min_gru",), channel=request.param, depth=2, rngs=nnx.Rngs(0)))


def pulled(model, state, tokens, ids, weights):
    """(outputs at real tokens, state, gradients of the model): of a weighted sum of the logits."""

    def loss(model):
        logits, new = model(tokens, state=state, segment_ids=ids)
        logits = jnp.where((ids != 0)[..., None], logits, 0)
        return jnp.sum(logits * weights), (logits, new)

    gradients, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(model)
    return logits, state, gradients


def weights():
    return np.random.default_rng(2).standard_normal((*IDS.shape, VOCAB)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(model):
    return pulled(model, model.init_state(2), jnp.asarray(TOKENS), jnp.asarray(IDS), weights())


@pytest.mark.parametrize("cut", [1, 6, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (4, 12, 23))])
def test_rwkv_in_a_backbone_pieces_in_turn_give_the_whole(model, whole, cut):
    """Values and state, at a document's border, in padding and inside a document."""
    run = jax.jit(lambda tokens, ids, state: model(tokens, state=state, segment_ids=ids))
    first, state = run(TOKENS[:, :cut], IDS[:, :cut], model.init_state(2))
    rest, state = run(TOKENS[:, cut:], IDS[:, cut:], state)
    joined = jnp.where(REAL, jnp.concatenate([first, rest], axis=1), 0)
    assert_close((joined, state), whole[:2])


def test_rwkv_in_a_backbone_decodes_what_it_computes_whole(model, whole):
    def step(state, token):
        logits, state = model(token[0][:, None], state=state, segment_ids=token[1][:, None])
        return state, logits[:, 0]

    state, logits = jax.jit(lambda state: jax.lax.scan(step, state, (TOKENS.T, IDS.T)))(model.init_state(2))
    assert_close((jnp.where(REAL, jnp.moveaxis(logits, 0, 1), 0), state), whole[:2])


@pytest.mark.parametrize(("row", "start", "stop"), [(0, 1, 6), (0, 6, 12), (0, 12, 13), (0, 13, 22), (1, 14, 24)])
def test_rwkv_in_a_backbone_a_packed_document_gives_what_it_gives_alone(model, whole, row, start, stop):
    real = np.flatnonzero(IDS[row, start:stop]) + start
    alone, _ = jax.jit(lambda tokens: model(tokens))(TOKENS[row : row + 1, real])
    assert_close(alone[0], whole[0][row, real])


@pytest.mark.parametrize("channel", RWKV)
def test_rwkv_in_a_backbone_documents_share_no_gradient(channel):
    """Scores in a row's last document do not depend on the embeddings of tokens that only earlier ones have."""
    tokens = np.where(np.arange(LENGTH) < 13, TOKENS % 5, 5 + TOKENS % 5)[:1]
    last = np.where(np.arange(LENGTH)[None, :, None] >= 13, weights()[:1], 0)
    untied = perturbed(LanguageModel(VOCAB, WIDTH, layers=("min_gru",), channel=channel, tie_embeddings=False, rngs=nnx.Rngs(0)))
    loss = lambda model: jnp.sum(model(tokens, segment_ids=IDS[:1])[0] * last)
    gradient = jax.jit(jax.grad(loss))(untied).embedding[...]
    assert not np.any(gradient[:5]) and np.any(gradient[5:10])


def test_rwkv_in_a_backbone_cut_over_a_mesh_nothing_changes(model, whole):
    mesh = jax.make_mesh((1, 2, 2, 2), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    put = lambda a: jax.device_put(a, jax.NamedSharding(mesh, jax.P(sharding.BATCH, sharding.TIME)))
    with jax.set_mesh(mesh):
        placed = pulled(model, model.init_state(2), put(TOKENS), put(IDS), put(weights()))
    assert_close(placed, whole, tolerance=2 * RELATIVE["float32"])


@pytest.mark.parametrize("gated", [True, False])
def test_rwkv_gates_a_squared_network_by_two_tokens(gated):
    """sigma(W_r x_r) * W_v relu(W_k x_k)^2 (Peng et al. 2023), the mixes on the present token; without a gate the network alone."""
    mixer = perturbed(channels.create(f"rwkv(expansion=3, gated={gated})", WIDTH, depth=(1, 3), rngs=nnx.Rngs(0)))
    x = np.random.default_rng(3).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
    y, state = jax.jit(lambda mixer, x: mixer(x, state=mixer.init_state(2)))(mixer, x)
    x = x.astype(np.float64)
    before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    mixed = lambda mu: wide(mu) * x + (1 - wide(mu)) * before
    gate = sigmoid(mixed(mixer.mix_receptance) @ wide(mixer.receptance.w)) if gated else 1
    assert_close(y, gate * (np.maximum(mixed(mixer.mix_key) @ wide(mixer.key.w), 0) ** 2 @ wide(mixer.value.w)))
    assert_close(state.tail[:, 0], x[:, -1])
    assert mixer.flops(2, LENGTH) == matmul_flops(jax.make_jaxpr(lambda x: mixer(x)[0])(x.astype(np.float32)).jaxpr)


@pytest.mark.parametrize("name", [name for name in channels.registry.names() if name != "none"])
def test_a_channel_mixer_keeps_the_dtype_it_computes_in_and_gives_no_state_unasked(name):
    mixer = channels.create(name, WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y, state = mixer(jnp.ones((2, 3, WIDTH), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and state is None
    _, new = mixer(jnp.ones((2, 3, WIDTH), jnp.bfloat16), state=mixer.init_state(2))
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(new) == shapes(mixer.init_state(2))


@pytest.mark.parametrize("name", [name for name in channels.registry.names() if name != "none"])
def test_what_stands_at_padding_reaches_no_token_no_state_and_no_gradient(name):
    mixer = perturbed(channels.create(name, WIDTH, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(4).standard_normal((*IDS.shape, WIDTH)).astype(np.float32)

    def loss(mixer, x):
        y, state = mixer(x, state=mixer.init_state(2), segment_ids=IDS)
        return jnp.sum(jnp.where(REAL, y, 0) ** 2), (y, state)

    run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    found, wanted = (run(mixer, np.where(REAL, x, np.float32(filler))) for filler in (np.nan, 0))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
