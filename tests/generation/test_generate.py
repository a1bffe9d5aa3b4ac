"""Generation is the model's own forward pass, token by token: on any mixer, at any prompt lengths, in constant memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import seqzoo
from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.generation import decoding
from seqzoo.generation.sampling import GREEDY
from seqzoo.model import LanguageModel

VOCAB, WIDTH = 23, 32
HYBRID = ("softmax(window=5, heads=2)", "mamba(state=4)", "sigmoid(heads=2)")
EARLY = ("softmax", "gla", "mamba", HYBRID)
PROMPTS = [np.random.default_rng(length).integers(0, VOCAB, length) for length in (1, 11, 6)]
NEW = 9
SETTINGS = {"max_new_tokens": NEW, "prefill_chunk": 4, "max_length": 20}


def build(layers, **settings):
    """A model whose every parameter is perturbed, so that it has something to say."""
    layers = (layers,) if isinstance(layers, str) else layers
    settings = {"layers": layers, "depth": len(layers) + (len(layers) > 1), "channel": "none", "tie_embeddings": False, **settings}
    model = LanguageModel(VOCAB, WIDTH, **settings, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.2 * noise.standard_normal(p.shape).astype(np.float32), model)


@pytest.fixture(scope="module")
def model():
    return build("softmax(heads=2)", learned_positions=20)


def every(early):
    """All mixers and a hybrid, those that are not in `early` in the slow tier."""
    marks = lambda layers: () if layers in early else pytest.mark.slow
    specs = [pytest.param(layers, marks=marks(layers), id=str(layers)) for layers in (*mixers.names(), HYBRID)]
    return pytest.mark.parametrize("layers", specs)


def decode(model, progress, count):
    return decoding.decode(model, progress, GREEDY, np.zeros((0,), np.int32), jnp.int32(count), top_k=None, block=32)


@every(EARLY)
def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass_over_the_generated_text(layers):
    """Teacher forcing: prompt and answer in one call without a state."""
    model = build(layers)
    answer = seqzoo.generate(model, PROMPTS, **SETTINGS)
    assert answer.tokens.shape == (3, NEW) and answer.lengths.tolist() == [NEW] * 3
    text = np.zeros((3, 20), np.int32)
    for row, (prompt, new) in enumerate(zip(PROMPTS, answer.tokens, strict=True)):
        text[row, : len(prompt) + NEW] = [*prompt, *new]
    logits = np.asarray(jax.jit(lambda model, text: model(text)[0])(model, text))
    for row, (prompt, new) in enumerate(zip(PROMPTS, answer.tokens, strict=True)):
        said = logits[row, len(prompt) - 1 : len(prompt) - 1 + NEW]
        # Two tokens may be as good as each other; float32 then decides either way.
        behind = said.max(axis=1) - said[np.arange(NEW), new]
        assert np.all(behind < 1e-4), f"{layers}: prompt of {len(prompt)}: {behind}"
    assert len(np.unique(answer.tokens)) > 2, f"{layers} says too little for this test: {answer.tokens}"
    # What would come next is known to more digits than its largest.
    tokens, progress = decode(model, decoding.prefill(model, PROMPTS, chunk=4, max_length=20), NEW)
    assert np.asarray(tokens)[:, :NEW].tolist() == answer.tokens.tolist()
    last = [len(prompt) + NEW - 1 for prompt in PROMPTS]
    assert_close(progress.logits, logits[np.arange(3), last], tolerance=1e-4, what=str(layers))


@every(("gla", HYBRID))
def test_each_of_several_prompts_gives_the_tokens_that_it_gives_alone(layers):
    model = build(layers)
    together = seqzoo.generate(model, PROMPTS, **SETTINGS)
    for prompt, row in zip(PROMPTS, together.tokens, strict=True):
        assert seqzoo.generate(model, [prompt], **SETTINGS).tokens.tolist() == [row.tolist()], f"{layers}: prompt of {len(prompt)}"


def test_the_prefill_chunk_does_not_change_the_tokens(model):
    whole = seqzoo.generate(model, PROMPTS, **SETTINGS | {"prefill_chunk": 512})
    assert seqzoo.generate(model, PROMPTS, **SETTINGS).tokens.tolist() == whole.tokens.tolist()
    pieces, whole = (decoding.prefill(model, PROMPTS, chunk=chunk, max_length=20) for chunk in (4, 16))
    assert_close(pieces, whole)


def test_prompts_may_be_an_array_and_a_row_is_sampled_with_its_own_key(model):
    prompts, keys = np.stack([PROMPTS[2]] * 3), jax.random.split(jax.random.key(0), 3)
    sample = lambda prompts, key: seqzoo.generate(model, prompts, key=key, temperature=2.0, top_k=9, top_p=0.9, **SETTINGS).tokens
    together = sample(prompts, keys)
    assert len({tuple(row) for row in together.tolist()}) == 3
    assert sample(jnp.asarray(prompts), keys).tolist() == together.tolist()
    assert sample(prompts[::-1], keys[::-1]).tolist() == together[::-1].tolist()
    assert sample(prompts[1:2], keys[1:2]).tolist() == together[1:2].tolist()
    folded = jax.vmap(jax.random.fold_in, (None, 0))(keys[0], jnp.arange(3))
    assert sample(prompts, keys[0]).tolist() == sample(prompts, folded).tolist() != together.tolist()


def test_a_row_ends_with_its_first_stop_id_and_the_others_continue(model):
    free = seqzoo.generate(model, PROMPTS, **SETTINGS).tokens.tolist()
    stop = (free[0][3], free[1][5])
    answer = seqzoo.generate(model, PROMPTS, stop=stop, **SETTINGS)
    wanted = [next((row[: i + 1] for i, token in enumerate(row) if token in stop), row) for row in free]
    assert [row.tolist() for row in answer.rows()] == wanted and len({len(row) for row in wanted}) > 1
    assert answer.lengths.tolist() == [len(row) for row in wanted]
    assert answer.tokens.shape == (3, max(map(len, wanted)))
    assert all(np.all(row[length:] == -1) for row, length in zip(answer.tokens, answer.lengths, strict=True))


@pytest.mark.parametrize("block", [1, 4])
def test_tokens_reach_the_callback_in_order_for_any_block(model, block):
    wanted = seqzoo.generate(model, PROMPTS, **SETTINGS).tokens
    stop, came = (int(wanted[0][3]), int(wanted[1][5])), []
    answer = seqzoo.generate(model, PROMPTS, stop=stop, block=block, on_token=lambda *step: came.append(step), **SETTINGS)
    assert [step for _, step in came] == list(range(answer.tokens.shape[1]))
    assert np.stack([tokens for tokens, _ in came], axis=1).tolist() == answer.tokens.tolist()
    assert answer.tokens.tolist() == seqzoo.generate(model, PROMPTS, stop=stop, **SETTINGS).tokens.tolist()


def test_the_loop_ends_where_every_row_has_ended():
    """Else this would take hours."""
    answer = seqzoo.generate(build("min_gru"), PROMPTS, max_new_tokens=10**9, stop=range(VOCAB))
    assert answer.lengths.tolist() == [1, 1, 1]


def test_calls_of_the_same_shapes_share_one_compilation(model):
    """Other prompts and lengths of prompts, keys, temperatures, stop ids, and another number of tokens."""
    settings = {"prefill_chunk": 4, "max_length": 20, "top_k": 5}
    compiled = lambda: [f._cache_size() for f in (decoding._init_state, decoding.prefill_chunk, decoding.decode)]
    one = {"key": jax.random.key(0), "temperature": 0.5, "top_p": 0.9, "stop": (1,), "max_new_tokens": 9}
    two = {"key": jax.random.key(1), "temperature": 1.5, "top_p": 0.2, "stop": (2,), "max_new_tokens": 4}
    seqzoo.generate(model, PROMPTS, **settings, **one)
    before = compiled()
    seqzoo.generate(model, [[3] * 14, [4, 5], [6]], **settings, **two)
    assert compiled() == before


def test_the_state_passes_from_block_to_block_without_a_copy(model):
    progress = decoding.prefill(model, PROMPTS, chunk=4, max_length=20)
    decode(model, progress, 4)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(progress.state))


def planned(model, max_length):
    """(bytes of the state, what the compiled loop needs) where documents may have max_length tokens."""
    progress = jax.eval_shape(lambda: decoding.prefill(model, [np.ones(4)], chunk=4, max_length=max_length))
    stop, limit = jax.ShapeDtypeStruct((0,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    compiled = decoding.decode.lower(model, progress, GREEDY, stop, limit, top_k=None, block=32).compile()
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(progress.state)), compiled.memory_analysis()


def needed(model, max_length):
    """(bytes of the state, bytes that decoding needs in all)."""
    state, plan = planned(model, max_length)
    return state, plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes


def test_no_token_copies_a_cache():
    """Beside the caches, written where they lie, there is room for a few rows of scores, but not for the keys of one layer."""
    state, plan = planned(build("softmax(heads=2)", depth=2), 100_000)
    assert plan.temp_size_in_bytes < state / 4


def test_decoding_after_100k_tokens_takes_the_memory_of_1k_unless_a_cache_grows():
    recurrent, pairwise = build(("min_gru", "softmax(window=8)"), depth=2), build("softmax(heads=2)")
    assert needed(recurrent, 1_000) == needed(recurrent, 100_000)
    (small, _), (large, planned) = needed(pairwise, 1_000), needed(pairwise, 100_000)
    assert large > 90 * small and planned > large


def test_caches_that_the_device_cannot_hold_are_refused_before_they_are_made():
    with pytest.raises(
        ValueError, match=r"caches of 2,147,483,646 tokens for 1 rows need .*B, and the device has .*max_new_tokens"
    ):
        seqzoo.generate(build("softmax(heads=2)"), [[1]], max_new_tokens=2**31 - 3)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["gla", "mamba", "rwkv7", "min_gru", "softmax(window=16)"])
def test_100k_tokens_are_read_in_chunks_into_a_state_that_does_not_grow(spec):
    model, length = build(spec), 100_000
    prompt = np.random.default_rng(0).integers(0, VOCAB, length)
    empty = sum(leaf.nbytes for leaf in jax.tree.leaves(model.init_state(1, 1)))
    progress = decoding.prefill(model, [prompt], chunk=2048, max_length=length + 4)
    assert int(progress.state.position[0]) == length
    _, progress = decode(model, progress, 4)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(progress.state)) == empty
    assert int(progress.state.position[0]) == length + 4
    # All of it in one call, without a state, says the same.
    answer = seqzoo.generate(model, [prompt], max_new_tokens=4, prefill_chunk=2048)
    logits = jax.jit(lambda model, text: model.attend(model.hidden(text)[0][:, -1]))(model, jnp.asarray(prompt[None], jnp.int32))
    assert np.max(logits[0]) - logits[0, answer.tokens[0, 0]] < 1e-3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
        ({"prompts": [1, 2]}, r"prompts\[0\] is 1, wanted a sequence"),
        ({"prompts": ["text"]}, r"prompts\[0\] is 'text', wanted a sequence of token ids"),
        ({"prompts": [[1.5]]}, "wanted a sequence of token ids"),
        ({"prompts": [[1], [2, 23]]}, r"prompts\[1\] has the token id 23, wanted 0 to 22"),
        ({"prompts": [[-1]]}, r"prompts\[0\] has the token id -1"),
        ({"stop": (99,)}, "stop has the token id 99"),
        ({"max_new_tokens": 0}, "max_new_tokens=0, wanted a whole number of at least 1"),
        ({"prefill_chunk": 0}, "prefill_chunk=0"),
        ({"block": 2.0}, "block=2.0"),
        ({"temperature": 0.5}, "temperature=0.5 without a key"),
        ({"top_k": 3, "top_p": 0.5}, "top_k=3, top_p=0.5 without a key"),
        ({"key": 7}, "key is 7, wanted jax.random.key"),
        ({"key": np.zeros((2,), np.uint32)}, "wanted jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "an array of 1 such keys"),
        ({"key": jax.random.key(0), "temperature": 0}, "temperature=0 with a key"),
        ({"key": jax.random.key(0), "temperature": -1.0}, "temperature=-1.0, wanted a finite number above 0"),
        ({"key": jax.random.key(0), "temperature": float("inf")}, "temperature=inf"),
        ({"key": jax.random.key(0), "top_k": 24}, "top_k=24, wanted a whole number from 1 to 23"),
        ({"key": jax.random.key(0), "top_p": 0.0}, "top_p=0.0"),
        ({"max_length": 5}, "1 tokens of prompt and max_new_tokens=9 are 10, more than max_length=5"),
        ({"max_new_tokens": 20}, "more than the model's learned_positions=20"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(model, settings, says):
    with pytest.raises(ValueError, match=says):
        seqzoo.generate(model, **{"prompts": [[1]], "max_new_tokens": NEW, **settings})


def test_nan_logits_are_reported(model):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model)
    with pytest.raises(FloatingPointError, match="NaN"):
        seqzoo.generate(broken, PROMPTS, **SETTINGS)
