"""Attention, its values and gradients, against loops over single documents; and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.attention_cases import IMPLEMENTATIONS, PACKED, SCORES, ids_of, inputs, oracle, value_and_gradients
from helpers.tolerances import RELATIVE, assert_close
from seqzoo.kernels.attention import attention, empty_cache


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
        wide = value_and_gradients(q, k, v, cotangent, implementation="blockwise", **settings)
        assert {x.dtype.name for x in jax.tree.leaves((exact, wide))} == {"float64"}
        exact, wide = jax.tree.map(np.asarray, (exact, wide))
    assert_close(exact[0], wanted, tolerance=RELATIVE["float64"], what="reference")
    assert_close(wide, exact, tolerance=RELATIVE["float64"], what="blockwise in float64")
    narrow = [x.astype(np.float32) for x in (q, k, v, cotangent)]
    assert_close(value_and_gradients(*narrow, implementation="blockwise", **settings), exact, what="blockwise in float32")
    assert_close(value_and_gradients(*narrow, implementation="reference", **settings), exact, what="reference in float32")


@pytest.mark.parametrize("scores,bias", SCORES)
def test_bfloat16_stays_within_its_tolerance(scores, bias):
    q, k, v = inputs(dtype=np.float32)
    cotangent = np.random.default_rng(1).normal(size=(2, 70, 4, 5)).astype(np.float32)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, cotangent)]
    exact = value_and_gradients(*(x.astype(jnp.float32) for x in rounded), scores=scores, bias=bias, implementation="reference")
    for implementation in (*IMPLEMENTATIONS, "decode"):
        results = value_and_gradients(*rounded, scores=scores, bias=bias, implementation=implementation)
        assert {x.dtype.name for x in jax.tree.leaves(results)} == {"bfloat16"}
        assert_close(results, exact, tolerance=RELATIVE["bfloat16"], what=implementation)


@pytest.mark.parametrize("t", [1, 5, pytest.param(600, marks=pytest.mark.slow)])
def test_plain_softmax_is_that_of_jax(t):
    q, k, v = inputs(t=t, heads=(4, 2, 2), widths=(8, 8), dtype=np.float32)
    wanted = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    for implementation in (*IMPLEMENTATIONS, "decode", None):
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
        results = value_and_gradients(q, k, v, cotangent, implementation="blockwise", **settings)
        wanted = value_and_gradients(q, k, v, cotangent, implementation="reference", **settings)
        assert_close(results, wanted)


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
    "Did you mean 'blockwise'": lambda q, k, v: attention(q, k, v, implementation="blockwis"),
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
