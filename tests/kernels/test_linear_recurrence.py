"""h_t = a_t h_{t-1} + b_t: every form against a float64 loop over tokens, under the laws of states and documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import RELATIVE, assert_close, rms

from seqzoo.kernels.linear_recurrence import linear_recurrence

FORMS = ["loop", "chunked"]
NAMES = ("a", "b", "initial_state")
VIOLENT = [0.0, -20.0, -100.0, -1e4, -1e6, -np.inf]  # log decays at every 17th token
LENGTH = 53  # chunked: 11 chunks of 5, the last one short
# Documents of 1, 2, 4, 5 and 6 tokens (chunks of 4 at this length), an id that returns, and padding in front, inside and behind.
IDS = [
    [0, 0, 5, 1, 1, 2, 0, 2, 2, 2, 1, 1, 1, 0, 0, 1, 1, 3, 3, 3, 3, 3, 3, 0, 4, 4, 4, 4, 0, 0, 5, 5, 5, 5, 5, 0, 0],
    [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
    [0] * 37,
]


def draw(batch=2, length=LENGTH, channels=3, log_decay=None, seed=0):
    """float32 inputs a, b, initial state as numpy arrays; every 17th token's decay is exp(log_decay)."""
    random = np.random.default_rng(seed)
    a = random.uniform(0.6, 1.0, (batch, length, channels))
    if log_decay is not None:
        a[:, 3::17] = np.exp(log_decay)
    b, initial = random.normal(size=a.shape), random.normal(size=(batch, channels))
    return tuple(x.astype(np.float32) for x in (a, b, initial))


def run(arguments, **settings):
    return linear_recurrence(*arguments[:2], initial_state=arguments[2], **settings)


def everything(arguments, **settings):
    """(h, last, and the gradients of a fixed random projection of both) as a dict; what tests compare."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(arguments):
        outputs = run(arguments, **settings)
        random = np.random.default_rng(7)
        weights = [random.normal(size=o.shape).astype(o.dtype) for o in outputs]
        return sum(jnp.sum(o * w) for o, w in zip(outputs, weights, strict=True)), outputs

    (_, outputs), gradients = jax.jit(loss)(tuple(jnp.asarray(a) for a in arguments))
    return dict(zip(("h", "last", *NAMES), (*outputs, *gradients), strict=True))


def exact(arguments, **settings):
    with jax.enable_x64(True):
        result = everything([np.asarray(a, np.float64) for a in arguments], implementation="reference", **settings)
        assert all(x.dtype == jnp.float64 for x in result.values())
        return {name: np.asarray(x) for name, x in result.items()}


def test_the_reference_is_the_formula():
    a, b, h = draw(length=5)
    got, last = run((a, b, h), implementation="reference")
    for t in range(5):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], h)
    assert_close(last, h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_values_final_state_and_gradients_are_the_references(form, length):
    arguments = draw(length=length)
    assert_close(everything(arguments, implementation=form), exact(arguments))


@pytest.mark.parametrize("form", FORMS)
def test_negative_zero_and_growing_decays_are_welcome(form):
    a, b, initial = draw()
    arguments = (np.where(np.arange(LENGTH)[None, :, None] % 5 == 0, 0, -1.3 * a).astype(np.float32), b, initial)
    assert_close(everything(arguments, implementation=form), exact(arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_decay", VIOLENT)
def test_violent_decays_lose_no_digits(form, log_decay):
    scale = {name: rms(x) for name, x in exact(draw()).items()}
    got, wanted = everything(draw(log_decay=log_decay), implementation=form), exact(draw(log_decay=log_decay))
    for name in wanted:
        assert_close(got[name], wanted[name], scale=scale[name], what=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [IDS[0], IDS[1], IDS[2]], ids=["short documents", "long gaps", "padding only"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_documents_are_those_run_alone(form, ids, reverse):
    a, b, initial = draw(batch=1, length=37)
    segment_ids = jnp.asarray([ids], jnp.int32)
    got = everything(
        (a, b, initial), segment_ids=segment_ids, initial_segment=jnp.asarray([7], jnp.int32), reverse=reverse, implementation=form
    )
    random = np.random.default_rng(7)
    weights = random.normal(size=a.shape), random.normal(size=initial.shape)
    wanted = {
        name: np.zeros_like(x, dtype=np.float64)
        for name, x in (("h", b), ("last", initial), ("a", a), ("b", b), ("initial_state", initial))
    }

    real = [i for i, token in enumerate(ids) if token]
    cuts = [k for k in range(1, len(real)) if ids[real[k]] != ids[real[k - 1]]]
    documents = np.split(np.array(real, int), cuts)[:: -1 if reverse else 1] if real else []
    for rows in documents:  # each alone, without ids, from zero; the loss reads the state after the last one only
        with jax.enable_x64(True):

            def alone(a, b, rows=rows):
                h, last = linear_recurrence(a, b, reverse=reverse, implementation="reference")
                final = jnp.sum(last * weights[1]) if rows is documents[-1] else 0.0
                return jnp.sum(h * weights[0][:, rows]) + final, (h, last)

            da, db = jax.grad(lambda *x: alone(*x)[0], (0, 1))(*(jnp.asarray(x[:, rows], jnp.float64) for x in (a, b)))
            _, (h, last) = alone(*(jnp.asarray(x[:, rows], jnp.float64) for x in (a, b)))
        wanted["h"][:, rows], wanted["last"], wanted["a"][:, rows], wanted["b"][:, rows] = h, last, da, db
    if not real:
        wanted["last"], wanted["initial_state"] = initial, weights[1]
    assert_close(got, wanted)
    padding = np.array([ids]) == 0
    for name in ("h", "a", "b"):
        assert np.all(np.asarray(got[name])[padding] == 0), name


@pytest.mark.parametrize("form", FORMS)
def test_the_carried_document_goes_on_until_another_starts(form):
    a, b, initial = draw(batch=2, length=8)
    ids = jnp.asarray([[0, 7, 7, 0, 7, 8, 8, 8]] * 2, jnp.int32)
    got = run((a, b, initial), segment_ids=ids, initial_segment=jnp.asarray([7, 3], jnp.int32), implementation=form)[0]
    h = np.stack([initial[0], 0 * initial[1]])
    for t in (1, 2, 4):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], h)
    assert_close(got[:, 5], b[:, 5])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 12, 20, 36])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(form, cut):
    ids, carried = jnp.asarray(IDS, jnp.int32), [5, 3, 2]
    arguments = draw(batch=3, length=37)
    latest = [next((i for i in row[:cut][::-1] if i), c) for row, c in zip(IDS, carried, strict=True)]
    carried, latest = jnp.asarray(carried, jnp.int32), jnp.asarray(latest, jnp.int32)

    def pieces(arguments):
        a, b, state = arguments
        first, state = run((a[:, :cut], b[:, :cut], state), segment_ids=ids[:, :cut], initial_segment=carried, implementation=form)
        second, state = run((a[:, cut:], b[:, cut:], state), segment_ids=ids[:, cut:], initial_segment=latest, implementation=form)
        return jnp.concatenate([first, second], axis=1), state

    def whole(arguments):
        return run(arguments, segment_ids=ids, initial_segment=carried, implementation=form)

    def summed(function):
        return jax.grad(lambda arguments: sum(jnp.sum(jnp.sin(o)) for o in function(arguments)))

    arguments = tuple(jnp.asarray(x) for x in arguments)
    assert_close(pieces(arguments), whole(arguments))
    assert_close(summed(pieces)(arguments), summed(whole)(arguments))


def test_reverse_is_the_flipped_row_run_forwards():
    a, b, initial = draw()
    wanted, last = run((a[:, ::-1], b[:, ::-1], initial))
    assert_close(run((a, b, initial), reverse=True), (wanted[:, ::-1], last))


@pytest.mark.parametrize("form", FORMS)
def test_complex_decays_rotate(form):
    a, b, initial = draw()
    arguments = tuple((x * np.exp(1j * k)).astype(np.complex64) for k, x in enumerate((a, b, initial)))
    with jax.enable_x64(True):
        wanted = run([jnp.asarray(x, jnp.complex128) for x in arguments], implementation="reference")

    def loss(arguments, form):
        h, last = run(arguments, implementation=form)
        return jnp.sum(jnp.real(h * h)) + jnp.sum(jnp.imag(last))

    assert_close(tuple(map(np.abs, run(arguments, implementation=form))), tuple(map(np.abs, wanted)))
    got, wanted = (jax.grad(loss)(tuple(map(jnp.asarray, arguments)), name) for name in (form, "reference"))
    for g, w in zip(got, wanted, strict=True):
        assert_close((g.real, g.imag), (w.real, w.imag))


@pytest.mark.parametrize("form", FORMS)
def test_float64_stays_float64_and_bfloat16_accumulates_in_float32(form):
    arguments = draw()
    with jax.enable_x64(True):
        got = everything([np.asarray(x, np.float64) for x in arguments], implementation=form)
        assert all(x.dtype == jnp.float64 for x in got.values())
    assert_close(got, exact(arguments), tolerance=RELATIVE["float64"])
    low = [jnp.asarray(x, jnp.bfloat16) for x in arguments]
    got = everything(low, implementation=form)
    assert {name: str(x.dtype) for name, x in got.items()} == {**dict.fromkeys(got, "bfloat16"), "last": "float32"}
    wanted = exact(low)
    assert_close({k: v.astype(jnp.float32) for k, v in got.items()}, wanted, tolerance=RELATIVE["bfloat16"])
    assert_close(got["last"], wanted["last"])


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_trailing_dimensions_are_free_and_the_state_starts_at_zero(shape):
    random = np.random.default_rng(0)
    a, b = (random.uniform(size=(2, 7, *shape)).astype(np.float32) for _ in range(2))
    h, last = linear_recurrence(a, b)
    assert h.shape == b.shape and last.shape == (2, *shape)
    flat = linear_recurrence(
        a.reshape(2, 7, -1), b.reshape(2, 7, -1), initial_state=np.zeros((2, max(1, int(np.prod(shape)))), np.float32)
    )
    assert_close(h.reshape(2, 7, -1), flat[0])


@pytest.mark.parametrize("form", FORMS)
def test_vmap_checkpoint_and_scan_compose(form):
    arguments = tuple(jnp.asarray(x) for x in draw(length=11))

    def loss(scale):
        h, last = jax.checkpoint(lambda s: run((arguments[0], s * arguments[1], arguments[2]), implementation=form))(scale)
        return jnp.sum(h**2) + jnp.sum(last)

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
        placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P("fsdp"))) for x in arguments]
        assert_close(everything(placed, segment_ids=ids, implementation=form), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": jnp.ones((2, 9, 4))}, "same shape and dtype"),
        ({"a": jnp.ones((2, 9, 5), jnp.bfloat16)}, "bfloat16"),
        ({"a": jnp.ones((2, 0, 5)), "b": jnp.ones((2, 0, 5))}, "t >= 1"),
        ({"initial_state": jnp.ones((2, 4))}, r"wanted \(2, 5\)"),
        ({"segment_ids": jnp.ones((2, 8), jnp.int32)}, r"wanted \(2, 9\)"),
        ({"implementation": "lop"}, "Did you mean 'loop'"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted(change, message):
    good = {"a": jnp.ones((2, 9, 5)), "b": jnp.ones((2, 9, 5))}
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**{**good, **change})
