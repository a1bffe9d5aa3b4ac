"""Attention against loops over single documents, its own definition, and the law that a row may be cut anywhere."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import RELATIVE, assert_close

from seqzoo.kernels.attention import Cache, attention, blocks, empty_cache
from seqzoo.kernels.attention.pairs import Settings, Tokens, dropout_words, kept

IMPLEMENTATIONS = ("reference", "blocks")
SCORES = (("softmax", 0.0), ("sigmoid", -2.0))
HEADS = (4, 2, 1)  # h, hk, hv


def inputs(b=2, t=70, heads=HEADS, widths=(6, 5), dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    h, hk, hv = heads
    k, v = widths
    return tuple(rng.normal(size=(b, t, n, d)).astype(dtype) for n, d in ((h, k), (hk, k), (hv, v)))


def ids_of(lengths):
    """[t] int32 from (id, length) runs."""
    return np.concatenate([np.full(n, i, np.int32) for i, n in lengths])


# 70 tokens: leading, interior and trailing padding; lengths 1, 2 and around the block of 32; neighbours that repeat an id later.
PACKED = np.stack(
    [
        ids_of([(0, 2), (1, 1), (2, 2), (0, 1), (1, 31), (0, 2), (1, 3), (3, 24), (0, 4)]),
        ids_of([(5, 32), (2, 33), (5, 1), (0, 1), (5, 2), (9, 1)]),
    ]
)


def oracle(q, k, v, *, scores="softmax", bias=0.0, window=None, segment_ids=None):
    """Every query by itself, in float64, over a list of its document's real tokens."""
    b, t, h, width = q.shape
    o = np.zeros((b, t, h, v.shape[3]))
    for row in range(b):
        document, last = [], 0
        for i in range(t):
            now = 1 if segment_ids is None else int(segment_ids[row, i])
            if now == 0:
                continue
            if last not in (0, now):
                document = []
            last = now
            document.append(i)
            past = document if window is None else document[-window:]
            for head in range(h):
                keys = k[row, past, head // (h // k.shape[2])]
                values = v[row, past, head // (h // v.shape[2])]
                s = keys @ q[row, i, head] / np.sqrt(width)
                w = np.exp(s - s.max()) / np.exp(s - s.max()).sum() if scores == "softmax" else 0.5 * (1 + np.tanh((s + bias) / 2))
                o[row, i, head] = w @ values
    return o


def value_and_gradients(q, k, v, cotangent, **settings):
    def f(q, k, v):
        return attention(q, k, v, **settings)[0]

    @jax.jit
    def run(q, k, v, cotangent):
        o, pull = jax.vjp(f, q, k, v)
        return o, pull(cotangent)

    return run(q, k, v, cotangent)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("ids", [None, PACKED], ids=["one document", "packed"])
@pytest.mark.parametrize("scores,bias", SCORES)
def test_each_document_gives_what_a_loop_over_it_alone_gives(scores, bias, ids, window):
    q, k, v = inputs()
    settings = {"scores": scores, "bias": bias, "window": window, "segment_ids": ids}
    wanted = oracle(q, k, v, **settings)
    cotangent = np.random.default_rng(1).normal(size=wanted.shape)
    with jax.enable_x64(True):
        exact = value_and_gradients(q, k, v, cotangent, implementation="reference", **settings)
        wide = value_and_gradients(q, k, v, cotangent, implementation="blocks", **settings)
        assert {x.dtype.name for x in jax.tree.leaves((exact, wide))} == {"float64"}
        exact, wide = jax.tree.map(np.asarray, (exact, wide))
    assert_close(exact[0], wanted, tolerance=RELATIVE["float64"], what="reference")
    assert_close(wide, exact, tolerance=RELATIVE["float64"], what="blocks in float64")
    narrow = [x.astype(np.float32) for x in (q, k, v, cotangent)]
    assert_close(value_and_gradients(*narrow, implementation="blocks", **settings), exact, what="blocks in float32")
    assert_close(value_and_gradients(*narrow, implementation="reference", **settings), exact, what="reference in float32")


@pytest.mark.parametrize("scores,bias", SCORES)
def test_bfloat16_stays_within_its_tolerance(scores, bias):
    q, k, v = inputs(dtype=np.float32)
    cotangent = np.random.default_rng(1).normal(size=(2, 70, 4, 5)).astype(np.float32)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, cotangent)]
    exact = value_and_gradients(*(x.astype(jnp.float32) for x in rounded), scores=scores, bias=bias, implementation="reference")
    for implementation in IMPLEMENTATIONS:
        results = value_and_gradients(*rounded, scores=scores, bias=bias, implementation=implementation)
        assert {x.dtype.name for x in jax.tree.leaves(results)} == {"bfloat16"}
        assert_close(results, exact, tolerance=RELATIVE["bfloat16"], what=implementation)


@pytest.mark.parametrize("t", [1, 5, pytest.param(600, marks=pytest.mark.slow)])
def test_plain_softmax_is_that_of_jax(t):
    q, k, v = inputs(t=t, heads=(4, 2, 2), widths=(8, 8), dtype=np.float32)
    wanted = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    for implementation in (*IMPLEMENTATIONS, None):
        assert_close(attention(q, k, v, implementation=implementation)[0], wanted, what=f"{implementation}")


@pytest.mark.slow
@pytest.mark.parametrize("scores,bias", SCORES)
@pytest.mark.parametrize("t", [257, 600, 1100])
def test_long_rows_of_many_documents_agree_with_the_definition(t, scores, bias):
    q, k, v = inputs(t=t, dtype=np.float32)
    rng = np.random.default_rng(2)
    ids = np.repeat(rng.integers(0, 4, (2, t // 50 + 1)), 50, axis=1)[:, :t].astype(np.int32)
    cotangent = rng.normal(size=(2, t, 4, 5)).astype(np.float32)
    for window in (None, 100):
        settings = {"scores": scores, "bias": bias, "window": window, "segment_ids": ids}
        results, wanted = (value_and_gradients(q, k, v, cotangent, implementation=i, **settings) for i in ("blocks", "reference"))
        assert_close(results, wanted)


def simulated_cache(k, v, ids, capacity, wraps):
    """Slots and lengths by walking the row token by token with plain assignments."""
    keys, values = np.zeros((len(k), capacity, *k.shape[2:])), np.zeros((len(v), capacity, *v.shape[2:]))
    length = np.zeros(len(k), np.int32)
    for row in range(len(k)):
        last = 0
        for i in np.flatnonzero(ids[row]):
            if last not in (0, ids[row, i]):
                keys[row], values[row], length[row] = 0, 0, 0
            last = ids[row, i]
            if wraps or length[row] < capacity:
                keys[row, length[row] % capacity], values[row, length[row] % capacity] = k[row, i], v[row, i]
            length[row] += 1
    return keys, values, length


@partial(jax.jit, static_argnames=("window", "scores", "implementation"))
def continued(q, k, v, cache, last, ids, *, window, scores, implementation):
    return attention(
        q,
        k,
        v,
        initial_state=cache,
        initial_segment=last,
        segment_ids=ids,
        window=window,
        scores=scores,
        implementation=implementation,
    )


def carried_on(last, ids):
    """The last non-zero id of each row."""
    return np.array([ids_row[ids_row != 0][-1] if ids_row.any() else old for old, ids_row in zip(last, ids, strict=True)], np.int32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scores,window,capacity", [("softmax", None, 40), ("softmax", 7, 10), ("sigmoid", 7, 7)])
def test_a_row_cut_anywhere_gives_what_it_gives_whole_and_the_slots_are_right(scores, window, capacity, implementation):
    q, k, v = inputs(dtype=np.float32)
    wanted = oracle(q, k, v, scores=scores, window=window, segment_ids=PACKED)
    step = partial(continued, scores=scores, window=window, implementation=implementation)
    # At borders of documents and inside them, a piece of padding alone (row 0), pieces shorter and longer than the ring.
    for cuts in ((0, 70), (0, 3, 37, 39, 70)):
        cache, last = empty_cache(2, capacity, (2, 1), 6, 5, np.float32), np.zeros(2, np.int32)
        outputs = []
        for a, z in pairwise(cuts):
            o, cache = step(q[:, a:z], k[:, a:z], v[:, a:z], cache, last, PACKED[:, a:z])
            outputs.append(o)
            last = carried_on(last, PACKED[:, a:z])
            assert_close(tuple(cache), simulated_cache(k[:, :z], v[:, :z], PACKED[:, :z], capacity, window), tolerance=0)
        assert_close(np.concatenate(outputs, axis=1), wanted, what=f"cuts {cuts}")


@pytest.mark.parametrize("window,capacity", [(None, 24), (4, 5)])
def test_decoding_token_by_token_is_the_whole_row(window, capacity):
    q, k, v = inputs(t=24, dtype=np.float32)
    step = jax.jit(lambda q, k, v, cache: attention(q, k, v, initial_state=cache, window=window))
    cache, outputs = empty_cache(2, capacity, (2, 1), 6, 5, np.float32), []
    for i in range(24):
        o, cache = step(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1], cache)
        outputs.append(o)
    assert_close(np.concatenate(outputs, axis=1), oracle(q, k, v, window=window))
    assert_close(tuple(cache), simulated_cache(k, v, np.ones((2, 24), np.int32), capacity, window), tolerance=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ids", [None, PACKED[:, :50]], ids=["one document", "packed"])
@pytest.mark.parametrize("window", [None, 5])
def test_gradients_flow_through_the_cache_as_through_the_whole_row(window, ids, implementation):
    q, k, v = inputs(t=50)
    cut = 20
    cotangent = np.random.default_rng(3).normal(size=(2, 50, 4, 5))
    kinds = {"window": window, "implementation": implementation}

    def whole(q, k, v):
        return attention(q, k, v, segment_ids=ids, window=window, implementation="reference")[0]

    def halves(q, k, v):
        cache = empty_cache(2, 50 if window is None else 5, (2, 1), 6, 5, q.dtype)
        front, back = (None, None) if ids is None else (ids[:, :cut], ids[:, cut:])
        last = None if ids is None else carried_on(np.zeros(2, np.int32), front)
        a, cache = attention(q[:, :cut], k[:, :cut], v[:, :cut], initial_state=cache, segment_ids=front, **kinds)
        b, _ = attention(q[:, cut:], k[:, cut:], v[:, cut:], initial_state=cache, initial_segment=last, segment_ids=back, **kinds)
        return jnp.concatenate([a, b], axis=1)

    with jax.enable_x64(True):
        results, wanted = (
            jax.jit(lambda *x, f=f: jax.grad(lambda *y: jnp.sum(f(*y) * cotangent), (0, 1, 2))(*x))(q, k, v)
            for f in (halves, whole)
        )
        assert {x.dtype.name for x in results} == {"float64"}
        results, wanted = jax.tree.map(np.asarray, (results, wanted))
    assert_close(results, wanted, tolerance=RELATIVE["float64"])


def test_the_cotangent_of_the_final_cache_reaches_the_tokens_that_are_in_it_and_no_others():
    q, k, v = inputs(b=1, t=12, dtype=np.float32)
    ids = ids_of([(1, 4), (2, 3), (0, 1), (2, 4)])[None]
    cache = empty_cache(1, 5, (2, 1), 6, 5, np.float32)

    def kept_sum(k, keys):
        state = attention(q, k, v, initial_state=cache._replace(keys=keys), segment_ids=ids, window=5)[1]
        return jnp.sum(state.keys)

    to_tokens, to_cache = jax.grad(kept_sum, (0, 1))(k, cache.keys)
    kept_tokens = np.isin(np.arange(12), [5, 6, 8, 9, 10, 11][-5:]).astype(np.float32)
    np.testing.assert_array_equal(to_tokens, np.broadcast_to(kept_tokens[None, :, None, None], k.shape))
    np.testing.assert_array_equal(to_cache, 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_full_cache_turns_the_row_to_nan_and_overwrites_nothing(implementation):
    q, k, v = inputs(t=12, dtype=np.float32)
    step = partial(continued, window=None, scores="softmax", implementation=implementation)
    last, ones = np.zeros(2, np.int32), np.ones((2, 12), np.int32)
    o, full = step(q, k, v, empty_cache(2, 8, (2, 1), 6, 5, np.float32), last, ones)
    assert np.all(np.isfinite(o[:, :8])) and np.all(np.isnan(o[:, 8:]))
    np.testing.assert_array_equal(full.keys, k[:, :8])
    np.testing.assert_array_equal(full.values, v[:, :8])
    np.testing.assert_array_equal(full.length, 12)
    # The row stays lost while the document goes on, its padding stays 0, and the next document is sound again.
    ids = np.tile(ids_of([(1, 2), (0, 1), (2, 3), (0, 6)]), (2, 1))
    o, after = step(q, k, v, full, np.ones(2, np.int32), ids)
    assert np.all(np.isnan(o[:, :2]))
    np.testing.assert_array_equal(o[:, 2], 0)
    assert_close(o[:, 3:6], oracle(q[:, 3:6], k[:, 3:6], v[:, 3:6]))
    np.testing.assert_array_equal(after.length, 3)
    np.testing.assert_array_equal(after.keys[:, 3:], 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_nothing_enormous_leaks_from_padding_or_from_another_document(scores, implementation):
    q, k, v = inputs(dtype=np.float32)
    cotangent = np.ones((2, 70, 4, 5), np.float32)
    loud = [x.copy() for x in (q, k, v)]
    mine = np.stack([PACKED[0] == 3, np.arange(70) < 32])  # one document per row
    for x, factor in zip(loud, (1e15, 1e20, 8e37), strict=True):
        x[~mine] *= np.float32(factor)
    weights = cotangent * mine[:, :, None, None]
    settings = {"scores": scores, "segment_ids": PACKED, "implementation": implementation}
    o, gradients = value_and_gradients(*loud, weights, **settings)
    quiet_o, quiet = value_and_gradients(q, k, v, weights, **settings)
    np.testing.assert_array_equal(np.asarray(o)[mine], np.asarray(quiet_o)[mine])
    for g, wanted in zip(gradients, quiet, strict=True):
        np.testing.assert_array_equal(np.asarray(g)[mine], np.asarray(wanted)[mine])
        np.testing.assert_array_equal(np.asarray(g)[~mine], 0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_gives_and_takes_exactly_nothing(implementation):
    q, k, v = inputs(dtype=np.float32)
    cotangent = np.full((2, 70, 4, 5), np.nan, np.float32)
    cotangent[PACKED != 0] = 1
    for x in (q, k):
        x[PACKED == 0] *= np.float32(1e30)  # such a padding's score with itself is infinite
    o, gradients = value_and_gradients(q, k, v, cotangent, segment_ids=PACKED, implementation=implementation)
    for x in (o, *gradients):
        assert np.all(np.isfinite(x))
        np.testing.assert_array_equal(np.asarray(x)[PACKED == 0], 0)


def test_no_intermediate_is_nan_where_a_query_sees_nothing():
    q, k, v = inputs(b=2, t=6, dtype=np.float32)
    with jax.debug_nans(True):
        attention(q, k, v, segment_ids=np.tile(ids_of([(0, 2), (1, 4)]), (2, 1)), implementation="reference")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_extreme_scores_stay_finite(scores, implementation):
    q, k, v = inputs(heads=(2, 2, 2), dtype=np.float32)
    q, k = q * 100, k * 100
    assert np.max(np.abs(np.einsum("bthk,bshk->bhts", q, k))) > 1e4
    results = value_and_gradients(
        q, k, v, np.ones((2, 70, 2, 5), np.float32), scores=scores, implementation=implementation, scale=1.0
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(results))
    assert_close(results[0], oracle(np.float64(q) * 6**0.5, np.float64(k), v, scores=scores), tolerance=1e-3)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_dropout_does_not_depend_on_blocks(scores, monkeypatch):
    monkeypatch.setattr(blocks, "SMALLEST", 8)
    q, k, v = inputs(b=2, t=20, heads=(2, 1, 2), dtype=np.float32)
    cotangent = np.random.default_rng(1).normal(size=(2, 20, 2, 5)).astype(np.float32)
    settings = {"scores": scores, "dropout": 0.4, "key": jax.random.key(3), "segment_ids": PACKED[:, 25:45]}
    results, wanted = (value_and_gradients(q, k, v, cotangent, implementation=i, **settings) for i in ("blocks", "reference"))
    assert_close(results, wanted)


def test_dropout_does_not_depend_on_cuts():
    q, k, v = inputs(b=2, t=12, dtype=np.float32)
    settings = {"dropout": 0.4, "key": jax.random.key(3)}
    run = jax.jit(partial(attention, **settings))
    whole = run(q, k, v)[0]
    cache = run(q[:, :5], k[:, :5], v[:, :5], initial_state=empty_cache(2, 12, (2, 1), 6, 5, np.float32))[1]
    rest = run(q[:, 5:], k[:, 5:], v[:, 5:], initial_state=cache)[0]
    assert_close(rest, whole[:, 5:])


def test_dropout_removes_the_stated_share_of_weights_independently_and_keeps_the_mean():
    n, rate = 64, 0.3
    # In each row two documents of n queries meet the same n key indices.
    documents = jnp.broadcast_to(jnp.repeat(jnp.arange(2, dtype=jnp.int32), n)[None], (2, 2 * n))
    indices = jnp.broadcast_to(jnp.tile(jnp.arange(n, dtype=jnp.int32), 2)[None], (2, 2 * n))
    queries, keys = Tokens(documents, indices), Tokens(documents[:, :n], indices[:, :n])
    settings = Settings("softmax", 0.0, 1.0, None, rate)
    factors = np.asarray(kept(settings, dropout_words(jax.random.key(0), queries, 2, 3), keys), np.float64)
    values = np.unique(factors)
    np.testing.assert_allclose(values, [0, 1 / (1 - rate)], rtol=1e-6)
    deviation = np.sqrt(rate * (1 - rate) / factors.size)
    assert abs(np.mean(factors == 0) - rate) < 4 * deviation
    # Rows, heads, queries, keys and documents draw independently: the correlation of neighbours is noise.
    centred = (factors - factors.mean()) / factors.std()
    for shift, axis in ((1, 0), (1, 1), (1, 2), (1, 3), (n, 2)):
        assert abs(np.mean(centred * np.roll(centred, shift, axis))) < 6 / np.sqrt(factors.size)


def test_dropout_without_a_key_is_no_dropout():
    q, k, v = inputs(t=20, dtype=np.float32)
    np.testing.assert_array_equal(attention(q, k, v, dropout=0.5)[0], attention(q, k, v)[0])


def visited(document, index, window=None, carried=0, block=32):
    tokens = Tokens(jnp.asarray(document, jnp.int32), jnp.asarray(index, jnp.int32))
    settings = Settings("softmax", 0.0, 1.0, window, 0.0)
    first, end = blocks.bounds(settings, tokens, tokens, block, block, carried)
    return np.asarray(first).tolist(), np.asarray(end).tolist()


def test_blocks_that_nobody_sees_are_not_visited():
    row = np.arange(128)[None]
    assert visited(0 * row, row) == ([0, 0, 0, 0], [1, 2, 3, 4])
    assert visited(0 * row, row, window=33) == ([0, 0, 1, 2], [1, 2, 3, 4])
    assert visited(0 * row, row, window=34) == ([0, 0, 0, 1], [1, 2, 3, 4])
    assert visited(row // 64, row % 64) == ([0, 0, 2, 2], [1, 2, 3, 4])
    # Indices alone would send block 1, which holds the ends of one document and the start of the next, to blocks of later rows.
    assert visited(row >= 50, np.where(row < 50, row, row - 50)) == ([0, 0, 1, 1], [1, 2, 3, 4])
    assert visited(0 * row - 1, row) == ([0, 0, 0, 0], [0, 0, 0, 0])


def test_blocks_never_hold_the_matrix_of_scores():
    q, k, v = (jax.ShapeDtypeStruct((1, 2048, 2, 16), jnp.float32) for _ in range(3))

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, implementation="blocks")[0] ** 2)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 2048 * 2048 * 4 / 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_checkpoint_and_scan_compose(implementation):
    q, k, v = inputs(b=3, t=40, dtype=np.float32)
    ids = np.stack([PACKED[0, :40], PACKED[1, 20:60], PACKED[0, 30:70]])

    def loss(q, k, v, ids):
        o, _ = attention(q, k, v, segment_ids=ids, implementation=implementation)
        return jnp.sum(jnp.sin(o))

    def one(q, k, v, ids):
        return loss(q[None], k[None], v[None], ids[None])

    gradient = partial(jax.grad, argnums=(0, 1, 2))
    wanted = jax.jit(gradient(loss))(q, k, v, ids)
    assert_close(jax.jit(jax.vmap(gradient(one)))(q, k, v, ids), wanted, what="vmap")
    assert_close(jax.jit(gradient(jax.checkpoint(loss)))(q, k, v, ids), wanted, what="checkpoint")

    def scanned(q, k, v, ids):
        return jax.lax.scan(lambda total, x: (total + one(*x), None), jnp.float32(0), (q, k, v, ids))[0]

    assert_close(jax.jit(gradient(scanned))(q, k, v, ids), wanted, what="scan")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_sharded_over_a_mesh_gives_equal_numbers(implementation):
    q, k, v = inputs(b=8, t=40, dtype=np.float32)
    ids = np.tile(PACKED[:, :40], (4, 1))
    cache = empty_cache(8, 40, (2, 1), 6, 5, np.float32)

    def run(q, k, v, ids, cache):
        def f(q, k, v):
            o, state = attention(q, k, v, segment_ids=ids, initial_state=cache, implementation=implementation)
            return jnp.sum(jnp.sin(o)), (o, state)

        return jax.value_and_grad(f, (0, 1, 2), has_aux=True)(q, k, v)

    wanted = jax.jit(run)(q, k, v, ids, cache)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
    with jax.set_mesh(mesh):
        results = jax.jit(run)(*jax.device_put((q, k, v, ids, cache), sharding))
    assert_close(results, wanted)


def test_the_cache_keeps_its_dtype():
    q, k, v = inputs(t=5, dtype=np.float32)
    cache = empty_cache(2, 8, (2, 1), 6, 5, jnp.bfloat16)
    o, after = attention(q, k, v, initial_state=cache)
    assert isinstance(after, Cache) and o.dtype == np.float32
    assert [x.dtype.name for x in after] == ["bfloat16", "bfloat16", "int32"]
    np.testing.assert_array_equal(after.keys[:, :5], jnp.asarray(k, jnp.bfloat16))


BAD = {
    "wanted \\[b, t, h, k\\]": lambda q, k, v: attention(q[0], k, v),
    "one width for q and k": lambda q, k, v: attention(q[..., :3], k, v),
    "one length >= 1": lambda q, k, v: attention(q[:, :0], k[:, :0], v[:, :0]),
    "k has 3 heads, wanted a divisor of q's 4": lambda q, k, v: attention(q, np.repeat(k[:, :, :1], 3, 2), v),
    "one floating-point dtype": lambda q, k, v: attention(q, k, v.astype(np.float16)),
    "wanted 'softmax' or 'sigmoid'": lambda q, k, v: attention(q, k, v, scores="relu"),
    "no effect on softmax": lambda q, k, v: attention(q, k, v, bias=-1.0),
    "window=0": lambda q, k, v: attention(q, k, v, window=0),
    "dropout=1": lambda q, k, v: attention(q, k, v, dropout=1.0),
    "Did you mean 'blocks'": lambda q, k, v: attention(q, k, v, implementation="block"),
    "segment_ids has shape": lambda q, k, v: attention(q, k, v, segment_ids=np.ones((2, 3), np.int32)),
    "fewer than window=4": lambda q, k, v: attention(q, k, v, window=4, initial_state=empty_cache(2, 3, (2, 1), 6, 5, np.float32)),
    "the cache's keys have shape": lambda q, k, v: attention(q, k, v, initial_state=empty_cache(2, 9, 2, 7, 5, np.float32)),
    "the cache's length": lambda q, k, v: attention(
        q, k, v, initial_state=empty_cache(2, 9, (2, 1), 6, 5, np.float32)._replace(length=np.zeros(3, np.int32))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused_with_what_was_found_and_wanted(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](*inputs(t=6, dtype=np.float32))
