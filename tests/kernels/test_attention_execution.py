"""Attention is the same however it is run: in blocks, under transforms, over a mesh, and with dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.attention_cases import IMPLEMENTATIONS, PACKED, inputs, value_and_gradients
from helpers.tolerances import assert_close
from seqzoo.kernels.attention import attention, blockwise, empty_cache
from seqzoo.kernels.attention.pairs import Settings, Tokens, draw_random_bits, dropout_mask


def visited(segment, position, window=None, cached=0, block=32):
    tokens = Tokens(jnp.asarray(segment, jnp.int32), jnp.asarray(position, jnp.int32))
    settings = Settings("softmax", 0.0, 1.0, window, 0.0)
    first, end = blockwise.block_ranges(settings, tokens, tokens, blockwise.BlockSizes(block, block), cached)
    return np.asarray(first).tolist(), np.asarray(end).tolist()


def test_fully_masked_blocks_are_skipped():
    row = np.arange(128)[None]
    assert visited(0 * row, row) == ([0, 0, 0, 0], [1, 2, 3, 4])
    assert visited(0 * row, row, window=33) == ([0, 0, 1, 2], [1, 2, 3, 4])
    assert visited(0 * row, row, window=34) == ([0, 0, 0, 1], [1, 2, 3, 4])
    assert visited(row // 64, row % 64) == ([0, 0, 2, 2], [1, 2, 3, 4])
    # Positions alone would send block 1, which holds the ends of one document and the start of the next, to blocks of later rows.
    assert visited(row >= 50, np.where(row < 50, row, row - 50)) == ([0, 0, 1, 1], [1, 2, 3, 4])
    assert visited(0 * row - 1, row) == ([0, 0, 0, 0], [0, 0, 0, 0])


def test_blocks_never_hold_the_matrix_of_scores():
    q, k, v = (jax.ShapeDtypeStruct((1, 2048, 2, 16), jnp.float32) for _ in range(3))

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, implementation="blockwise")[0] ** 2)

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


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_dropout_does_not_depend_on_blocks(scores, monkeypatch):
    monkeypatch.setattr(blockwise, "SMALLEST", 8)
    q, k, v = inputs(b=2, t=20, heads=(2, 1, 2), dtype=np.float32)
    cotangent = np.random.default_rng(1).normal(size=(2, 20, 2, 5)).astype(np.float32)
    settings = {"scores": scores, "dropout": 0.4, "key": jax.random.key(3), "segment_ids": PACKED[:, 25:45]}
    results, wanted = (value_and_gradients(q, k, v, cotangent, implementation=i, **settings) for i in ("blockwise", "reference"))
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
    # In each row two documents of n queries meet the same n key positions.
    documents = jnp.broadcast_to(jnp.repeat(jnp.arange(2, dtype=jnp.int32), n)[None], (2, 2 * n))
    indices = jnp.broadcast_to(jnp.tile(jnp.arange(n, dtype=jnp.int32), 2)[None], (2, 2 * n))
    queries, keys = Tokens(documents, indices), Tokens(documents[:, :n], indices[:, :n])
    settings = Settings("softmax", 0.0, 1.0, None, rate)
    factors = np.asarray(dropout_mask(settings, draw_random_bits(jax.random.key(0), queries, 2, 3), keys), np.float64)
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
