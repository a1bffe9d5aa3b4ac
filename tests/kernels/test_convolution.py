"""The short convolution against its definition, token by token, in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import RELATIVE, assert_close
from seqzoo.kernels.convolution import short_convolution

WIDTH = 4
# Leading, interior and trailing padding; documents of length 1, 2, width - 1, width, width + 1; an id that returns.
IDS = [
    [0, 0, 5, 1, 1, 2, 0, 2, 2, 1, 1, 1, 0, 0, 1, 3, 3, 3, 3, 3, 0],
    [1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 4, 4],
    [0] * 21,
]


def draw(batch, length, width=WIDTH, channels=5, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    shapes = {
        "x": (batch, length, channels),
        "weight": (width, channels),
        "bias": (channels,),
        "tail": (batch, width - 1, channels),
    }
    return tuple(jnp.asarray(random.normal(size=shape).astype(dtype)) for shape in shapes.values())


def call(x, weight, bias, tail, **settings):
    return short_convolution(x, weight, bias, initial_state=tail, **settings)


def definition(x, weight, bias, tail, segment_ids=None, initial_segment=None):
    """One row, one token, one tap at a time, in float64."""
    x, weight, bias, tail = (np.asarray(a, np.float64) for a in (x, weight, bias, tail))
    ids = np.ones(x.shape[:2], int) if segment_ids is None else np.asarray(segment_ids)
    width, y, tails = len(weight), np.zeros_like(x), tail.copy()
    for row in range(len(x)):
        seen = list(tail[row])
        current = 0 if initial_segment is None else int(initial_segment[row])
        for t, token in enumerate(ids[row]):
            if token == 0:
                continue
            if current not in (0, token):
                seen = [np.zeros(x.shape[2])] * (width - 1)
            current = token
            seen.append(x[row, t])
            y[row, t] = bias + sum(weight[width - 1 - j] * seen[-1 - j] for j in range(width))
        tails[row] = np.array(seen[len(seen) - width + 1 :]).reshape(tails[row].shape)
    return y, tails


def gradients(function, arguments):
    """All gradients of a fixed random projection of both outputs."""

    def loss(arguments):
        outputs = function(*arguments)
        random = np.random.default_rng(7)
        return sum(jnp.sum(o * random.normal(size=o.shape).astype(o.dtype)) for o in outputs)

    return jax.grad(loss)(arguments)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("length", [1, 2, 21])
def test_it_is_the_definition(implementation, length):
    with jax.enable_x64(True):
        arguments = draw(2, length)
        got = call(*arguments, implementation=implementation)
        assert got[0].dtype == got[1].dtype == jnp.float64
        assert_close(got, definition(*arguments), tolerance=RELATIVE["float64"])


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("carried", [None, [5, 1, 2]])
@pytest.mark.parametrize("width", [1, 2, WIDTH])
def test_packed_documents_see_only_their_own_real_tokens(implementation, carried, width):
    ids, carried = jnp.asarray(IDS, jnp.int32), None if carried is None else jnp.asarray(carried, jnp.int32)
    with jax.enable_x64(True):
        arguments = draw(3, 21, width)
        got = call(*arguments, segment_ids=ids, initial_segment=carried, implementation=implementation)
        assert_close(got, definition(*arguments, ids, carried), tolerance=RELATIVE["float64"])
        assert np.all(np.asarray(got[0])[np.asarray(ids) == 0] == 0)


@pytest.mark.parametrize("ids", [None, IDS], ids=["one document", "packed"])
def test_the_gradients_are_those_of_the_reference_and_zero_at_padding(ids):
    ids = None if ids is None else jnp.asarray(ids, jnp.int32)
    arguments = draw(3, 21, dtype=np.float32)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
        wanted = gradients(lambda *a: call(*a, segment_ids=ids, implementation="reference"), exact)
    got = gradients(lambda *a: call(*a, segment_ids=ids), list(arguments))
    assert_close(got, wanted)
    if ids is not None:
        assert np.all(np.asarray(got[0])[np.asarray(ids) == 0] == 0)


def test_not_even_a_nan_of_another_document_or_of_padding_leaks():
    x, weight, bias, tail = draw(1, 6, dtype=np.float32)
    ids, carried = jnp.asarray([[1, 0, 2, 2, 0, 3]], jnp.int32), jnp.asarray([9], jnp.int32)
    x = x.at[:, jnp.array([0, 1, 4, 5])].set(jnp.nan)

    def loss(x):
        return jnp.sum(call(x, weight, bias, tail + jnp.nan, segment_ids=ids, initial_segment=carried)[0][:, 2:4])

    value, gradient = jax.value_and_grad(loss)(x)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert np.all(gradient[:, [0, 1, 4, 5]] == 0)


def test_a_nan_at_padding_reaches_no_gradient():
    x, *rest = draw(3, 21, dtype=np.float32)
    ids = jnp.asarray(IDS, jnp.int32)
    x = jnp.where((ids == 0)[:, :, None], jnp.nan, x)
    assert all(np.all(np.isfinite(g)) for g in gradients(lambda *a: call(*a, segment_ids=ids), [x, *rest]))


@pytest.mark.parametrize("cut", [1, 7, 20, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (3, 8, 13))])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(cut):
    ids = jnp.asarray(IDS, jnp.int32)
    x, weight, bias, tail = draw(3, 21, dtype=np.float32)
    carried = jnp.asarray([5, 3, 2], jnp.int32)
    whole = call(x, weight, bias, tail, segment_ids=ids, initial_segment=carried)
    first, tail = call(x[:, :cut], weight, bias, tail, segment_ids=ids[:, :cut], initial_segment=carried)
    latest = [next((i for i in row[:cut][::-1] if i), c) for row, c in zip(IDS, [5, 3, 2], strict=True)]
    second, tail = call(x[:, cut:], weight, bias, tail, segment_ids=ids[:, cut:], initial_segment=jnp.asarray(latest, jnp.int32))
    assert_close((jnp.concatenate([first, second], axis=1), tail), whole)


def test_token_by_token_without_ids_gives_what_the_whole_row_gives():
    x, weight, bias, tail = draw(2, 6, dtype=np.float32)
    whole, outputs = call(x, weight, bias, tail), []
    for t in range(6):
        y, tail = call(x[:, t : t + 1], weight, bias, tail)
        outputs.append(y)
    assert_close((jnp.concatenate(outputs, axis=1), tail), whole)


def test_leaving_out_bias_and_tail_means_zeros():
    x, weight, bias, tail = draw(2, 9, dtype=np.float32)
    got = short_convolution(x, weight)
    assert_close(got, definition(x, weight, 0 * bias, 0 * tail))
    assert got[1].dtype == x.dtype


def test_bfloat16_is_accumulated_in_float32_and_the_tail_keeps_the_states_dtype():
    x, weight, bias, tail = (a.astype(jnp.bfloat16) for a in draw(2, 21, dtype=np.float32))
    ids = jnp.asarray(IDS[:2], jnp.int32)
    for segment_ids in (None, ids):
        y, last = call(x, weight, bias, tail.astype(jnp.float32), segment_ids=segment_ids)
        assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
        wanted = definition(x, weight, bias, tail, segment_ids)
        assert_close(y, wanted[0], tolerance=4e-3)  # one rounding of the output: half of 2^-8
        assert_close(last, wanted[1], tolerance=0)


@pytest.mark.slow
def test_vmap_checkpoint_and_scan_compose():
    x, weight, bias, tail = draw(2, 21, dtype=np.float32)
    ids = jnp.asarray(IDS[:2], jnp.int32)

    def run(x):
        return call(x, weight, bias, tail, segment_ids=ids)[0]

    stacked = jnp.stack([x, 2 * x])
    wanted = jnp.stack([run(x), run(2 * x)])
    assert_close(jax.vmap(run)(stacked), wanted)
    assert_close(jax.lax.map(run, stacked), wanted)
    plain = jax.grad(lambda x: jnp.sum(run(x) ** 2))
    assert_close(jax.vmap(jax.grad(lambda x: jnp.sum(jax.checkpoint(run)(x) ** 2)))(stacked), jnp.stack([plain(x), plain(2 * x)]))


def test_batch_sharded_inputs_give_the_same_numbers():
    x, weight, bias, tail = draw(8, 21, dtype=np.float32)
    ids = jnp.asarray([*IDS, *IDS, *IDS[:2]], jnp.int32)
    wanted = call(x, weight, bias, tail, segment_ids=ids)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P("fsdp"))
        x, tail, ids = (jax.device_put(a, rows) for a in (x, tail, ids))
        assert_close(jax.jit(call)(x, weight, bias, tail, segment_ids=ids), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 5))}, "wanted float"),
        ({"x": jnp.ones((2, 9, 5), jnp.int32)}, "int32"),
        ({"x": jnp.ones((2, 0, 5))}, "t >= 1"),
        ({"weight": jnp.ones((5, 4))}, "transpose"),
        ({"bias": jnp.ones(4)}, r"wanted \(5,\)"),
        ({"initial_state": jnp.ones((2, 4, 5))}, r"wanted \(2, 3, 5\)"),
        ({"segment_ids": jnp.ones((2, 8), jnp.int32)}, r"wanted \(2, 9\)"),
        ({"implementation": "xls"}, "Did you mean 'xla'"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted(change, message):
    good = {"x": jnp.ones((2, 9, 5)), "weight": jnp.ones((4, 5))}
    with pytest.raises(ValueError, match=message):
        short_convolution(**{**good, **change})
