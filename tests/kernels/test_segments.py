"""The document rules against a plain reading of them, token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiers
from seqzoo.kernels.attention import attention
from seqzoo.kernels.common import segments
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan

IDS = np.random.default_rng(0).choice([0, 0, 1, 2], size=(64, 13)).astype(np.int32)
FIRST = np.random.default_rng(1).choice([0, 1, 2], size=64).astype(np.int32)
COUNT = np.where(FIRST == 0, 0, np.random.default_rng(2).integers(1, 9, size=64)).astype(np.int32)


def read_aloud(ids, carried, count):
    """(starts, document numbers, positions, last id, count) of one row, by going through it."""
    starts, numbers, positions, document = [], [], [], 0
    for token in ids:
        new = token != 0 and carried != 0 and token != carried
        if new:
            document, count = document + 1, 0
        starts.append(new)
        numbers.append(document if token else -1)
        positions.append(count if token else None)
        if token:
            carried, count = token, count + 1
    return starts, numbers, positions, carried, count


def test_starts_numbers_positions_and_last_ids_are_those_of_a_plain_reading():
    starts = segments.starts(jnp.asarray(IDS), jnp.asarray(FIRST))
    numbers = segments.relabel(jnp.asarray(IDS), jnp.asarray(FIRST))
    positions, count = segments.positions(jnp.asarray(IDS), jnp.asarray(FIRST), jnp.asarray(COUNT), IDS.shape[1])
    last = segments.last_segment(jnp.asarray(IDS), jnp.asarray(FIRST))
    for row in range(len(IDS)):
        wanted = read_aloud(IDS[row], FIRST[row], COUNT[row])
        assert list(starts[row]) == wanted[0]
        assert list(numbers[row]) == wanted[1]
        assert all(w is None or w == p for w, p in zip(wanted[2], positions[row], strict=True))
        assert (int(last[row]), int(count[row])) == wanted[3:]
    assert all(a.dtype == jnp.int32 for a in (numbers, positions, count, last))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_ids_of_any_integer_dtype_give_the_same(dtype):
    ids, first = jnp.asarray(IDS, dtype), jnp.asarray(FIRST)
    wide = jnp.asarray(IDS)
    np.testing.assert_array_equal(segments.starts(ids, first), segments.starts(wide, first))
    np.testing.assert_array_equal(segments.first_tokens(ids, first, 13), segments.first_tokens(wide, first, 13))
    np.testing.assert_array_equal(segments.relabel(ids, first), segments.relabel(wide, first))
    np.testing.assert_array_equal(segments.last_segment(ids, first), segments.last_segment(wide, first))


def test_an_id_that_comes_back_opens_a_third_document():
    assert segments.relabel(jnp.array([[1, 2, 0, 1]])).tolist() == [[0, 1, -1, 2]]


def test_no_ids_continue_the_carried_document_and_open_the_first_one():
    positions, count = segments.positions(None, None, jnp.array([3, 0], jnp.int32), 2)
    assert positions.tolist() == [[3, 4], [0, 1]] and count.tolist() == [5, 2]
    assert segments.last_segment(None, jnp.array([7, 0], jnp.int32)).tolist() == [7, 1]


def test_the_first_document_of_all_has_a_first_token_too():
    """Nothing ends there, so it does not count as a start; what a carried document goes on with is no first token."""
    ids = jnp.array([[0, 1, 1, 0, 2], [0, 1, 1, 0, 2], [0, 1, 1, 0, 2], [0, 0, 0, 0, 0]], jnp.int32)
    seen = jnp.array([0, 1, 2, 0], jnp.int32)
    wanted = [[0, 1, 0, 0, 1], [0, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert segments.first_tokens(ids, seen, 5).astype(int).tolist() == wanted
    lowest = jnp.iinfo(jnp.int32).min  # an id like any other
    assert (
        segments.first_tokens(jnp.where(ids == 1, lowest, ids), jnp.where(seen == 1, lowest, seen), 5).astype(int).tolist()
        == wanted
    )
    assert segments.first_tokens(None, seen[:2], 3).astype(int).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_padding_becomes_exact_zero_even_from_nan():
    y = segments.mask_padding(jnp.full((1, 2, 3), jnp.nan).at[0, 1].set(1.0), jnp.array([[0, 4]]))
    assert y.tolist() == [[[0.0] * 3, [1.0] * 3]]


@pytest.mark.parametrize(
    ("ids", "first", "message"),
    [
        (jnp.zeros((2, 4), jnp.int32), None, r"segment_ids has shape \(2, 4\), wanted \(2, 3\)"),
        (jnp.zeros((2, 3), bool), None, r"segment_ids has dtype bool, wanted int32"),
        (None, jnp.zeros((3,), jnp.int32), r"initial_segment has shape \(3,\), wanted \(2,\)"),
    ],
)
def test_ids_of_another_shape_or_dtype_are_refused(ids, first, message):
    with pytest.raises(ValueError, match=message):
        segments.check(ids, first, 2, 3)


def constant(*shape):
    return np.ones(shape, np.float32)


# Each op with its implementations, and its arrays [b, t, ...] of rows.
OPS = {
    attention: (("reference", "decode", "blockwise"), lambda b, t: [constant(b, t, 2, 3)] * 3),
    linear_attention: (("reference", "recurrent", "chunkwise"), lambda b, t: [constant(b, t, 2, 3)] * 3),
    linear_recurrence: (("reference", "recurrent", "chunkwise"), lambda b, t: [0.5 * constant(b, t, 3), constant(b, t, 3)]),
    short_convolution: (("reference", "xla"), lambda b, t: [constant(b, t, 3), constant(2, 3)]),
    selective_scan: (
        ("reference", "recurrent", "chunkwise"),
        lambda b, t: [*[constant(b, t, 3)] * 2, -constant(3, 2), *[constant(b, t, 2)] * 2],
    ),
}
every_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)


@every_op
@pytest.mark.parametrize(("batch", "length"), [(0, 4), (2, 0)])
def test_an_empty_piece_is_refused_in_one_line(op, batch, length):
    with pytest.raises(ValueError, match=r"wanted .*(at least one of each|t >= 1|length >= 1)[^\n]*$"):
        op(*OPS[op][1](batch, length))


@every_op
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_stands_at_padding_reaches_no_value_no_state_and_no_gradient(op, value):
    """In every argument that has tokens, and every implementation: bit by bit what zeros there give."""
    ids = np.array([[0, 1, 1, 0, 0, 1, 2, 2, 0, 3, 3, 0]], np.int32)
    implementations, make = OPS[op]
    arrays = make(*ids.shape)
    fill = lambda x, value: np.where((ids != 0).reshape(*ids.shape, *(1,) * (x.ndim - 2)), x, np.float32(value))
    filled = lambda value: [fill(x, value) if x.shape[:2] == ids.shape else x for x in arrays]

    for implementation in implementations:

        def total(arrays, implementation=implementation):
            out = jax.tree.leaves(op(*arrays, segment_ids=jnp.asarray(ids), implementation=implementation))
            return sum(jnp.sum(x * x) for x in out), out

        run = jax.jit(jax.grad(total, has_aux=True))
        jax.tree.map(np.testing.assert_array_equal, run(filled(value)), run(filled(0)))


def attention_with(**settings):
    """`linear_attention` with all its arguments by position: decays, and a low-rank term."""

    def op(q, k, v, g, gv, low_rank, **others):
        extra = {"a": -low_rank, "b": low_rank} if settings.get("low_rank") else {}
        decays = {"log_decay": g[..., 0] if settings.get("head") else g} if settings.get("keys", True) else {}
        decays |= {"value_log_decay": gv} if settings.get("values") else {}
        before = {"read_before_write": settings.get("before", False)}
        return linear_attention(q, k, v, **decays, **extra, **before, chunk_size=chunks(others), **others)

    return op


def chunks(settings):
    return None if settings["implementation"] == "reference" else 4


LINEAR_FORMS = {
    "no decay": attention_with(keys=False),
    "head": attention_with(head=True),
    "channel": attention_with(),
    "value": attention_with(keys=False, values=True),
    "both": attention_with(values=True),
    "before": attention_with(before=True),
    "head, before": attention_with(head=True, before=True),
    "low rank": attention_with(low_rank=True),
}
FORMS = ("reference", "recurrent", "chunkwise", "recurrent_forward_chunkwise_backward")
# A document of 3 tokens, then one of 7 that starts inside a chunk of 4; and the same with the huge one at the end of a chunk.
HUGE_IDS = np.array([[1] * 3 + [2] * 7, [1] * 4 + [2] * 6], np.int32)


def check_the_next_document(op, arrays, fill, **settings):
    """The second document's outputs, state and gradients are the same whatever the first one holds."""
    first = HUGE_IDS == 1

    def run(filled):
        def loss(arrays):
            y, last = op(*arrays, segment_ids=jnp.asarray(HUGE_IDS), **settings)
            y = jnp.where(first.reshape(*first.shape, *(1,) * (y.ndim - 2)), 0, y)
            return jnp.sum(jnp.abs(y) ** 2) + sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(last)), (y, last)

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(filled)
        per_token = [g[~first] for g, x in zip(gradients, arrays, strict=True) if x.shape[:2] == first.shape]
        return out, per_token

    huge = [
        np.where(first.reshape(*first.shape, *(1,) * (x.ndim - 2)), np.float32(value), x) if value is not None else x
        for x, value in zip(arrays, fill, strict=True)
    ]
    for found, wanted in zip(jax.tree.leaves(run(huge)), jax.tree.leaves(run(arrays)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("form", "implementation"), tiers.a_third(itertools.product(LINEAR_FORMS, FORMS)))
def test_a_state_that_overflowed_does_not_reach_the_next_document_of_linear_attention(form, implementation):
    """k v^T is 1e40, an infinity. With a low-rank term the matrix form needs finite states: there 1e15."""
    noise = np.random.default_rng(0)
    draw = lambda: noise.standard_normal((2, 10, 2, 4)).astype(np.float32)
    arrays = [draw(), draw(), draw(), -np.abs(draw()), -np.abs(draw()), 0.3 * draw()]
    huge = 1e15 if form == "low rank" and "chunkwise" in implementation else 1e20
    check_the_next_document(LINEAR_FORMS[form], arrays, (huge, huge, huge, None, None, None), implementation=implementation)


@pytest.mark.parametrize(("op", "implementation"), [(op, name) for op in OPS if op != linear_attention for name in OPS[op][0]])
def test_what_overflowed_does_not_reach_the_next_document(op, implementation):
    noise = np.random.default_rng(1)
    draw = lambda *shape: noise.standard_normal(shape).astype(np.float32)
    token = lambda *shape: draw(2, 10, *shape)
    if op == attention:  # values stay finite; scores are 1e40
        run = lambda *arrays, **settings: (attention(*arrays, **settings)[0], ())
        return check_the_next_document(run, [token(2, 4)] * 3, (1e20,) * 3, implementation=implementation)
    arrays, fill = {
        linear_recurrence: ([token(3), token(3)], (1e20, 1e20)),  # h grows to 1e60
        short_convolution: ([token(3), draw(2, 3)], (1e38, None)),
        selective_scan: ([token(3), np.abs(token(3)), -np.abs(draw(3, 2)), token(2), token(2)], (1e20, 1, None, 1e20, 1e20)),
    }[op]
    check_the_next_document(op, arrays, fill, implementation=implementation)
