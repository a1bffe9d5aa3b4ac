"""The selective scan: every form against the float64 definition, under the laws of states and documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import RELATIVE, assert_close, rms

from seqzoo.kernels.selective_scan import selective_scan

FORMS = ["loop", "chunked"]
NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")
VIOLENT = [0.0, -20.0, -100.0, -1e4, -1e6, -np.inf]  # log decays dt A at every 17th token
LENGTH = 53  # loop: 4 blocks of 16; chunked: 11 chunks of 5; neither divides
# Documents of 1, 2, 3, 4 and 5 tokens (chunks of 4 at this length), an id that returns, and padding in front, inside and behind.
IDS = [
    [0, 0, 5, 1, 1, 2, 0, 2, 2, 1, 1, 1, 0, 0, 1, 3, 3, 3, 3, 3, 3, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0],
    [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
    [0] * 37,
]


def draw(batch=2, length=LENGTH, channels=3, states=2, log_decay=None, seed=0):
    """float32 inputs in the order of NAMES. With log_decay: one state, every 17th token's dt A is log_decay, its write mild."""
    random = np.random.default_rng(seed)
    states = states if log_decay is None else 1
    x, dt = random.normal(size=(batch, length, channels)), random.uniform(0.05, 0.5, (batch, length, channels))
    A = -random.uniform(0.5, 2.0, (channels, states))
    B, C = random.normal(size=(2, batch, length, states))
    D, initial = random.normal(size=channels), random.normal(size=(batch, channels, states))
    if log_decay is not None:
        dt[:, 3::17] = log_decay / A[None, None, :, 0]
        x[:, 3::17] /= np.clip(dt[:, 3::17], 1, 1e30)
    return tuple(a.astype(np.float32) for a in (x, dt, A, B, C, D, initial))


def run(arguments, **settings):
    *inputs, D, initial = arguments
    return selective_scan(*inputs, D=D, initial_state=initial, **settings)


def everything(arguments, **settings):
    """(y, last, and the gradients of a fixed random projection of both) as a dict; what tests compare."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(arguments):
        outputs = run(arguments, **settings)
        random = np.random.default_rng(7)
        weights = [random.normal(size=o.shape).astype(o.dtype) for o in outputs]
        return sum(jnp.sum(o * w) for o, w in zip(outputs, weights, strict=True)), outputs

    (_, outputs), gradients = jax.jit(loss)(tuple(jnp.asarray(a) for a in arguments))
    return dict(zip(("y", "last", *NAMES), (*outputs, *gradients), strict=True))


def exact(arguments, **settings):
    with jax.enable_x64(True):
        result = everything([np.asarray(a, np.float64) for a in arguments], implementation="reference", **settings)
        assert all(x.dtype == jnp.float64 for x in result.values())
        return {name: np.asarray(x) for name, x in result.items()}


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_it_is_the_formula(form):
    arguments = draw(length=5)
    x, dt, A, B, C, D, h = (np.asarray(a, np.float64) for a in arguments)
    got, last = run(arguments, implementation=form)
    for t in range(5):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None]
        assert_close(got[:, t], np.einsum("bdn,bn->bd", h, C[:, t]) + D * x[:, t])
    assert_close(last, h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 16, LENGTH])
def test_values_final_state_and_gradients_are_the_references(form, length):
    arguments = draw(length=length)
    assert_close(everything(arguments, implementation=form), exact(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_long_rows_with_chunks_of_several_blocks_keep_their_digits(form):
    arguments = draw(length=2000)
    assert_close(everything(arguments, implementation=form), exact(arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_decay", VIOLENT)
def test_violent_decays_lose_no_digits(form, log_decay):
    scale = {name: rms(x) for name, x in exact(draw(states=1)).items()}
    arguments = draw(log_decay=log_decay)
    got, wanted = everything(arguments, implementation=form), exact(arguments)
    for name in wanted:
        assert_close(got[name], wanted[name], scale=scale[name], what=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dt", [0.0, 1e6, np.inf])
def test_rows_of_violent_steps_only_are_free_of_nan(form, dt):
    x, _, *rest = draw(length=20)
    got = everything((x, np.full_like(x, dt), *rest), implementation=form)
    assert all(np.all(np.isfinite(a)) for a in got.values())


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_an_infinite_step_forgets_everything_and_writes_nothing(form):
    x, dt, A, B, C, D, initial = draw(length=20)
    dt[:, 11] = np.inf
    y, last = run((x, dt, A, B, C, 0 * D, initial), implementation=form)
    assert np.all(np.asarray(y)[:, 11] == 0)
    behind = run((x[:, 12:], dt[:, 12:], A, B[:, 12:], C[:, 12:], 0 * D, 0 * initial), implementation=form)
    assert_close((y[:, 12:], last), behind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", IDS, ids=["short documents", "long gaps", "padding only"])
def test_packed_documents_are_those_run_alone(form, ids):
    arguments = draw(batch=1, length=37)
    x, dt, A, B, C, D, initial = arguments
    segment_ids, carried = jnp.asarray([ids], jnp.int32), jnp.asarray([7], jnp.int32)
    got = everything(arguments, segment_ids=segment_ids, initial_segment=carried, implementation=form)
    random = np.random.default_rng(7)
    weights = random.normal(size=x.shape), random.normal(size=initial.shape)
    wanted = dict(zip(("y", "last", *NAMES), (np.zeros(a.shape) for a in (x, initial, *arguments)), strict=True))
    wanted["last"], wanted["initial_state"] = initial, weights[1]

    real = np.array([i for i, token in enumerate(ids) if token], int)
    cuts = [k for k in range(1, len(real)) if ids[real[k]] != ids[real[k - 1]]]
    documents = np.split(real, cuts) if len(real) else []
    for rows in documents:  # each alone, without ids, from zero; the loss reads the state after the last one only
        with jax.enable_x64(True):

            def alone(x, dt, A, B, C, D, rows=rows):
                y, last = selective_scan(x, dt, A, B, C, D=D, implementation="reference")
                final = jnp.sum(last * weights[1]) if rows is documents[-1] else 0.0
                return jnp.sum(y * weights[0][:, rows]) + final, (y, last)

            inputs = [np.asarray(a, np.float64) for a in (x[:, rows], dt[:, rows], A, B[:, rows], C[:, rows], D)]
            gradients, (y, last) = jax.grad(alone, range(6), has_aux=True)(*(jnp.asarray(a) for a in inputs))
        wanted["y"][:, rows], wanted["last"], wanted["initial_state"] = np.asarray(y), np.asarray(last), 0 * initial
        for name, gradient in zip(NAMES, gradients, strict=False):
            if name in ("A", "D"):
                wanted[name] += np.asarray(gradient)
            else:
                wanted[name][:, rows] = np.asarray(gradient)
    assert_close(got, wanted)
    padding = np.array([ids]) == 0
    for name in ("y", "x", "dt", "B", "C"):
        assert np.all(np.asarray(got[name])[padding] == 0), name


@pytest.mark.parametrize("form", FORMS)
def test_not_even_a_nan_at_padding_reaches_anything(form):
    arguments = draw(batch=1, length=6)
    padding = np.array([1, 4])
    ids = jnp.asarray([[1, 0, 1, 1, 0, 2]], jnp.int32)
    for a in (arguments[0], arguments[1], arguments[3], arguments[4]):
        a[:, padding] = np.nan
    got = everything(arguments, segment_ids=ids, implementation=form)
    assert all(np.all(np.isfinite(a)) for a in got.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 12, 20])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(form, cut):
    ids, carried = jnp.asarray(IDS, jnp.int32), [5, 3, 2]
    latest = [next((i for i in row[:cut][::-1] if i), c) for row, c in zip(IDS, carried, strict=True)]
    carried, latest = jnp.asarray(carried, jnp.int32), jnp.asarray(latest, jnp.int32)

    def pieces(x, dt, A, B, C, D, state):
        first, state = run(
            (x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, state),
            segment_ids=ids[:, :cut],
            initial_segment=carried,
            implementation=form,
        )
        second, state = run(
            (x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, state),
            segment_ids=ids[:, cut:],
            initial_segment=latest,
            implementation=form,
        )
        return jnp.concatenate([first, second], axis=1), state

    def whole(*arguments):
        return run(arguments, segment_ids=ids, initial_segment=carried, implementation=form)

    def both(function):
        def loss(arguments):
            outputs = function(*arguments)
            return sum(jnp.sum(jnp.sin(o)) for o in outputs), outputs

        return jax.jit(jax.grad(loss, has_aux=True))

    arguments = tuple(jnp.asarray(a) for a in draw(batch=3, length=37))
    assert_close(both(pieces)(arguments), both(whole)(arguments))


@pytest.mark.parametrize("form", FORMS)
def test_float64_stays_float64_and_bfloat16_keeps_a_float32_state(form):
    arguments = draw()
    with jax.enable_x64(True):
        got = everything([np.asarray(a, np.float64) for a in arguments], implementation=form)
        assert all(a.dtype == jnp.float64 for a in got.values())
    assert_close(got, exact(arguments), tolerance=RELATIVE["float64"])
    low = [jnp.asarray(a, jnp.bfloat16) for a in arguments]
    got = everything(low, implementation=form)
    assert {name: str(a.dtype) for name, a in got.items()} == {**dict.fromkeys(got, "bfloat16"), "last": "float32"}
    wanted = exact(low)
    assert_close({k: v.astype(jnp.float32) for k, v in got.items()}, wanted, tolerance=RELATIVE["bfloat16"])
    assert_close(got["last"], wanted["last"])


def test_leaving_out_the_skip_and_the_state_means_zeros():
    x, dt, A, B, C, D, initial = draw(length=9)
    assert_close(selective_scan(x, dt, A, B, C), run((x, dt, A, B, C, 0 * D, 0 * initial)))


@pytest.mark.parametrize("form", FORMS)
def test_vmap_checkpoint_and_scan_compose(form):
    x, *rest = (jnp.asarray(a) for a in draw(length=18))

    def loss(scale):
        y, last = jax.checkpoint(lambda s: run((s * x, *rest), implementation=form))(scale)
        return jnp.sum(y**2) + jnp.sum(last)

    scales = jnp.array([0.5, 2.0])
    wanted = jnp.stack([jax.grad(loss)(s) for s in scales])
    assert_close(jax.vmap(jax.grad(loss))(scales), wanted)
    assert_close(jax.lax.map(jax.grad(loss), scales), wanted)
    assert_close(jax.grad(lambda s: jax.lax.scan(lambda c, x: (c + loss(x), None), 0.0, s)[0])(scales), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_batch_sharded_inputs_give_the_same_numbers(form):
    arguments = draw(batch=8, length=37)
    ids = jnp.asarray([*IDS, *IDS, *IDS[:2]], jnp.int32)
    wanted = everything(arguments, segment_ids=ids, implementation=form)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("fsdp") if len(a) == 8 else jax.P())) for a in arguments]
        assert_close(everything(placed, segment_ids=ids, implementation=form), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((2, 0, 5)), "dt": jnp.ones((2, 0, 5))}, "t >= 1"),
        ({"dt": jnp.ones((2, 9, 1))}, r"dt is float32\[2, 9, 1\]"),
        ({"A": -jnp.ones((3, 5))}, r"wanted \(5, n\)"),
        ({"B": jnp.ones((2, 9, 5))}, r"wanted float\[2, 9, 3\]"),
        ({"C": jnp.ones((2, 9, 3), jnp.int32)}, "int32"),
        ({"D": jnp.ones(3)}, r"wanted float\[5\]"),
        ({"initial_state": jnp.ones((2, 3, 5))}, r"wanted float\[2, 5, 3\]"),
        ({"segment_ids": jnp.ones((2, 8), jnp.int32)}, r"wanted \(2, 9\)"),
        ({"implementation": "chunk"}, "Did you mean 'chunked'"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted(change, message):
    wide, narrow = jnp.ones((2, 9, 5)), jnp.ones((2, 9, 3))
    good = {"x": wide, "dt": wide, "A": -jnp.ones((5, 3)), "B": narrow, "C": narrow}
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**good, **change})
