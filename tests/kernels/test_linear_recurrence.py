"""h_t = a_t h_{t-1} + b_t: every form against a float64 loop over tokens, under the laws of states and documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from seqzoo.kernels.linear_recurrence import linear_recurrence

from . import scan_cases
from .scan_cases import FORMS, IDS, VIOLENT

LENGTH = 53  # chunked: 11 chunks of 5, the last one short
PER_TOKEN = ("a", "b")

everything = functools.partial(scan_cases.everything, linear_recurrence)
exact = functools.partial(scan_cases.exact, linear_recurrence)


def draw(batch=2, length=LENGTH, channels=3, log_decay=None, seed=0):
    """float32 arrays by argument name; every 17th token's decay is exp(log_decay)."""
    random = np.random.default_rng(seed)
    a = random.uniform(0.6, 1.0, (batch, length, channels))
    if log_decay is not None:
        a[:, 3::17] = np.exp(log_decay)
    arrays = {"a": a, "b": random.normal(size=a.shape), "initial_state": random.normal(size=(batch, channels))}
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def test_the_reference_is_the_formula():
    arrays = draw(length=5)
    got, last = linear_recurrence(**arrays, implementation="reference")
    a, b, h = arrays.values()
    for t in range(5):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], h)
    assert_close(last, h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_values_final_state_and_gradients_are_the_references(form, length):
    arrays = draw(length=length)
    assert_close(everything(arrays, implementation=form), exact(arrays))


@pytest.mark.parametrize("form", FORMS)
def test_negative_zero_and_growing_decays_are_welcome(form):
    arrays = draw()
    arrays["a"] *= np.float32(-1.3)
    arrays["a"][:, ::5] = 0
    assert_close(everything(arrays, implementation=form), exact(arrays))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_decay", VIOLENT)
def test_violent_decays_lose_no_digits(form, log_decay):
    arrays = draw(log_decay=log_decay)
    scan_cases.assert_close_on_the_scale_of(exact(draw()), everything(arrays, implementation=form), exact(arrays))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", IDS, ids=["short documents", "long gaps", "padding only"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_documents_are_those_run_alone(form, ids, reverse):
    arrays = draw(batch=1, length=37)
    scan_cases.assert_documents_are_those_run_alone(linear_recurrence, arrays, PER_TOKEN, ids, form, reverse=reverse)


@pytest.mark.parametrize("form", FORMS)
def test_the_carried_document_goes_on_until_another_starts(form):
    arrays = draw(batch=2, length=8)
    a, b, initial = arrays.values()
    ids = jnp.asarray([[0, 7, 7, 0, 7, 8, 8, 8]] * 2, jnp.int32)
    carried = jnp.asarray([7, 3], jnp.int32)
    got = linear_recurrence(**arrays, segment_ids=ids, initial_segment=carried, implementation=form)[0]
    h = np.stack([initial[0], 0 * initial[1]])
    for t in (1, 2, 4):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], h)
    assert_close(got[:, 5], b[:, 5])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 12, 20, 36])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(form, cut):
    op = functools.partial(linear_recurrence, implementation=form)
    scan_cases.assert_a_cut_changes_nothing(op, draw(batch=3, length=37), PER_TOKEN, cut)


def test_reverse_is_the_flipped_row_run_forwards():
    arrays = draw()
    wanted, last = linear_recurrence(**scan_cases.at(arrays, PER_TOKEN, slice(None, None, -1)))
    assert_close(linear_recurrence(**arrays, reverse=True), (wanted[:, ::-1], last))


@pytest.mark.parametrize("form", FORMS)
def test_complex_decays_rotate(form):
    arrays = {name: (x * np.exp(1j * k)).astype(np.complex64) for k, (name, x) in enumerate(draw().items())}
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(x, jnp.complex128) for name, x in arrays.items()}
        wanted = linear_recurrence(**wide, implementation="reference")

    def loss(arrays, form):
        h, last = linear_recurrence(**arrays, implementation=form)
        return jnp.sum(jnp.real(h * h)) + jnp.sum(jnp.imag(last))

    assert_close(tuple(map(np.abs, linear_recurrence(**arrays, implementation=form))), tuple(map(np.abs, wanted)))
    got, wanted = (jax.grad(loss)(jax.tree.map(jnp.asarray, arrays), name) for name in (form, "reference"))
    for part in (np.real, np.imag):
        assert_close(jax.tree.map(part, got), jax.tree.map(part, wanted))


@pytest.mark.parametrize("form", FORMS)
def test_float64_stays_float64_and_bfloat16_accumulates_in_float32(form):
    scan_cases.assert_dtypes_are_kept(linear_recurrence, draw(), form)


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
    op = functools.partial(linear_recurrence, implementation=form)
    scan_cases.assert_vmap_checkpoint_and_scan_compose(op, draw(length=11), "b")


@pytest.mark.parametrize("form", FORMS)
def test_batch_sharded_inputs_give_the_same_numbers(form):
    arrays, ids = draw(batch=8, length=37), np.resize(IDS, (8, 37))
    scan_cases.assert_a_mesh_changes_nothing(linear_recurrence, arrays, ids, implementation=form)


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
