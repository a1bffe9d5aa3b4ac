"""h_t = a_t h_{t-1} + b_t: every implementation against a float64 loop over tokens, under the laws of states and documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import scan_cases
from helpers.scan_cases import IDS, IMPLEMENTATIONS, VIOLENT
from helpers.tolerances import assert_close
from seqzoo.kernels.linear_recurrence import linear_recurrence

LENGTH = 53  # chunkwise: 11 chunks of 5, the last one short
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_values_final_state_and_gradients_are_the_references(implementation, length):
    arrays = draw(length=length)
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_negative_zero_and_growing_decays_are_welcome(implementation):
    arrays = draw()
    arrays["a"] *= np.float32(-1.3)
    arrays["a"][:, ::5] = 0
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("log_decay", VIOLENT)
def test_violent_decays_lose_no_digits(implementation, log_decay):
    arrays = draw(log_decay=log_decay)
    scan_cases.assert_close_on_the_scale_of(exact(draw()), everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ids", IDS, ids=["short documents", "long gaps", "padding only"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_documents_are_those_run_alone(implementation, ids, reverse):
    arrays = draw(batch=1, length=37)
    scan_cases.assert_documents_are_those_run_alone(linear_recurrence, arrays, PER_TOKEN, ids, implementation, reverse=reverse)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_carried_document_continues_until_another_starts(implementation):
    arrays = draw(batch=2, length=8)
    a, b, initial = arrays.values()
    ids = jnp.asarray([[0, 7, 7, 0, 7, 8, 8, 8]] * 2, jnp.int32)
    carried = jnp.asarray([7, 3], jnp.int32)
    got = linear_recurrence(**arrays, segment_ids=ids, initial_segment=carried, implementation=implementation)[0]
    h = np.stack([initial[0], 0 * initial[1]])
    for t in (1, 2, 4):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], h)
    assert_close(got[:, 5], b[:, 5])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cut", [1, 12, 20, 36])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(implementation, cut):
    op = functools.partial(linear_recurrence, implementation=implementation)
    scan_cases.assert_a_cut_changes_nothing(op, draw(batch=3, length=37), PER_TOKEN, cut)


def test_reverse_is_the_flipped_row_run_forwards():
    arrays = draw()
    wanted, last = linear_recurrence(**scan_cases.at(arrays, PER_TOKEN, slice(None, None, -1)))
    assert_close(linear_recurrence(**arrays, reverse=True), (wanted[:, ::-1], last))


SHARED = {"by all rows and tokens": (0, 1), "by the tokens of a row": (1,), "by the rows": (0,)}
documents = pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("axes", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
@documents
def test_a_shared_decay_gives_the_results_of_a_broadcast_one(implementation, axes, reverse, documents):
    arrays = draw(batch=3, length=37)
    arrays["a"] = np.take(arrays["a"], [0], axes[0]) if len(axes) == 1 else arrays["a"][:1, :1]
    settings = {"ids": IDS, "initial_segment": np.array([5, 3, 2], np.int32)} if documents else {}
    full = {**arrays, "a": np.broadcast_to(arrays["a"], arrays["b"].shape)}
    wanted = exact(full, **settings, reverse=reverse)
    wanted["a"] = wanted["a"].sum(axes, keepdims=True)
    assert_close(everything(arrays, **settings, reverse=reverse, implementation=implementation), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 1e-30])
def test_shared_decays_may_forget_all_or_nothing(implementation, decay):
    arrays = draw()
    arrays["a"] = np.full((1, 1, 3), decay, np.float32)
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_decay_shared_by_all_tokens_is_never_broadcast(implementation):
    """Compared with one that is: neither it nor its gradient takes the memory of a sequence, not with documents either."""
    arrays, ids = draw(batch=4, length=128, channels=64), np.repeat([[1, 2]], 64, axis=1).repeat(4, axis=0)

    def loss(a, b, broadcast):
        return jnp.sum(
            linear_recurrence(jnp.broadcast_to(a, b.shape) if broadcast else a, b, segment_ids=ids, implementation=implementation)[
                0
            ]
            ** 2
        )

    one, full = (
        jax.jit(jax.grad(functools.partial(loss, broadcast=broadcast))).lower(arrays["a"][:1, :1], arrays["b"]).compile()
        for broadcast in (False, True)
    )
    saved = full.memory_analysis().temp_size_in_bytes - one.memory_analysis().temp_size_in_bytes
    assert saved > 1.5 * arrays["b"].nbytes


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("log_decay", [None, *VIOLENT])
@pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])
def test_a_decay_given_as_its_logarithm_is_that_decay(implementation, log_decay, shared):
    """Its gradient is that of the decay times the decay: 0 where it is -inf."""
    arrays = draw()
    with np.errstate(divide="ignore"):
        logs = np.log(arrays["a"])
    if log_decay is not None:
        logs[:, 3::17] = log_decay
    arrays["a"] = logs[:, 3:4] if shared else logs
    decays = np.exp(arrays["a"].astype(np.float64))
    wanted, mild = exact({**arrays, "a": decays}), exact(draw())
    wanted["a"] = wanted["a"] * decays
    scan_cases.assert_close_on_the_scale_of(mild, everything(arrays, log=True, implementation=implementation), wanted)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_bfloat16_logarithms_forget_at_their_own_pace(implementation):
    """exp(-2^-12) is 1 in bfloat16, whose digits end at 2^-9 there; given as a logarithm it is exact."""
    ones = jnp.ones((1, 256, 2), jnp.bfloat16)
    _, last = linear_recurrence(jnp.full_like(ones, -(2.0**-12)), ones, log=True, implementation=implementation)
    assert_close(last, np.full((1, 2), np.exp(-(2.0**-12) * np.arange(256)).sum()))


def planes(a, b, initial_state=None, **settings):
    """The complex recurrence as a map of real arrays, the two planes on a last axis."""
    a, b, initial_state = (None if x is None else jax.lax.complex(x[..., 0], x[..., 1]) for x in (a, b, initial_state))
    outputs = linear_recurrence(a, b, initial_state=initial_state, **settings)
    return tuple(jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1) for x in outputs)


def draw_planes(**sizes):
    """Decays of modulus 0.6 to 1 and any angle, and complex inputs."""
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, draw(**sizes)["a"].shape)
    arrays = {name: np.stack([x, x[::-1]], axis=-1) for name, x in draw(**sizes).items()}
    arrays["a"] = draw(**sizes)["a"][..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)
    return arrays


def test_complex_numbers_multiply():
    arrays = draw_planes(length=5)
    a, b, h = (x[..., 0] + 1j * x[..., 1] for x in arrays.values())
    got, last = planes(**arrays, implementation="reference")
    for t in range(5):
        h = a[:, t] * h + b[:, t]
        assert_close(got[:, t], np.stack([h.real, h.imag], axis=-1))
    assert_close(last, np.stack([h.real, h.imag], axis=-1))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
@pytest.mark.parametrize("shared", [False, True], ids=["per token", "shared"])
@documents
def test_complex_values_final_state_and_gradients_are_the_references(implementation, reverse, shared, documents):
    arrays = draw_planes(batch=3, length=37)
    if shared:
        arrays["a"] = arrays["a"][:1, :1]
    settings = {"ids": IDS, "initial_segment": np.array([5, 3, 2], np.int32)} if documents else {}
    got = scan_cases.everything(planes, arrays, **settings, reverse=reverse, implementation=implementation)
    assert_close(got, scan_cases.exact(planes, arrays, **settings, reverse=reverse))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_complex_documents_are_those_run_alone(implementation):
    scan_cases.assert_documents_are_those_run_alone(planes, draw_planes(batch=1, length=37), PER_TOKEN, IDS[0], implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float64_stays_float64_and_bfloat16_accumulates_in_float32(implementation):
    scan_cases.assert_dtypes_are_kept(linear_recurrence, draw(), implementation)


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


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["chunkwise", "recurrent"])
def test_vmap_checkpoint_and_scan_compose(implementation):
    op = functools.partial(linear_recurrence, implementation=implementation)
    scan_cases.assert_vmap_checkpoint_and_scan_compose(op, draw(length=11), "b")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_sharded_inputs_give_the_same_numbers(implementation):
    arrays, ids = draw(batch=8, length=37), np.resize(IDS, (8, 37))
    scan_cases.assert_a_mesh_changes_nothing(linear_recurrence, arrays, ids, implementation=implementation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": jnp.ones((2, 9, 4))}, "same shape and dtype"),
        ({"a": jnp.ones((2, 9, 5), jnp.bfloat16)}, "bfloat16"),
        ({"a": jnp.ones((1, 3, 5))}, "first two axes may be 1"),
        ({"a": jnp.ones((2, 9, 1))}, "same shape and dtype"),
        ({"a": jnp.ones((2, 9, 5), jnp.complex64), "b": jnp.ones((2, 9, 5), jnp.complex64), "log": True}, "wanted real logarithms"),
        ({"a": jnp.ones((2, 0, 5)), "b": jnp.ones((2, 0, 5))}, "t >= 1"),
        ({"initial_state": jnp.ones((2, 4))}, r"wanted \(2, 5\)"),
        ({"segment_ids": jnp.ones((2, 8), jnp.int32)}, r"wanted \(2, 9\)"),
        ({"implementation": "recurent"}, "Did you mean 'recurrent'"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted(change, message):
    good = {"a": jnp.ones((2, 9, 5)), "b": jnp.ones((2, 9, 5))}
    with pytest.raises(ValueError, match=message):
        linear_recurrence(**{**good, **change})
