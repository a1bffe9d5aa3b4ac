"""Attention's cache: a row may be cut anywhere, the slots are right, and gradients flow through them."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.attention_cases import IMPLEMENTATIONS, PACKED, ids_of, inputs, oracle
from helpers.scan_cases import carried_on
from helpers.tolerances import RELATIVE, assert_close
from seqzoo.kernels.attention import Cache, attention, empty_cache


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


@pytest.mark.parametrize(
    "scores,window,capacity,implementation",
    [
        ("softmax", None, 40, "reference"),
        ("softmax", 7, 10, "blockwise"),
        ("sigmoid", 7, 7, "blockwise"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("softmax", None, 40, "blockwise"), ("softmax", 7, 10, "reference"), ("sigmoid", 7, 7, "reference"))
        ),
    ],
)
def test_a_row_cut_anywhere_gives_what_it_gives_whole_and_the_slots_are_right(scores, window, capacity, implementation):
    q, k, v = inputs(dtype=np.float32)
    wanted = oracle(q, k, v, scores=scores, window=window, segment_ids=PACKED)
    step = partial(continued, scores=scores, window=window, implementation=implementation)
    # At borders of documents and inside them, a part of padding alone (row 0), parts shorter and longer than the ring buffer.
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


def test_the_cache_keeps_its_dtype():
    q, k, v = inputs(t=5, dtype=np.float32)
    cache = empty_cache(2, 8, (2, 1), 6, 5, jnp.bfloat16)
    o, after = attention(q, k, v, initial_state=cache)
    assert isinstance(after, Cache) and o.dtype == np.float32
    assert [x.dtype.name for x in after] == ["bfloat16", "bfloat16", "int32"]
    np.testing.assert_array_equal(after.keys[:, :5], jnp.asarray(k, jnp.bfloat16))
