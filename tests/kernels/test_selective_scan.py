"""The selective scan: every implementation against the float64 definition, under the laws of states and documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import scan_cases
from helpers.scan_cases import IDS, IMPLEMENTATIONS, VIOLENT
from helpers.tolerances import assert_close
from seqzoo.kernels.selective_scan import selective_scan

LENGTH = 53  # recurrent: 4 blocks of 16; chunkwise: 11 chunks of 5; neither divides
PER_TOKEN = ("x", "dt", "B", "C")

everything = functools.partial(scan_cases.everything, selective_scan)
exact = functools.partial(scan_cases.exact, selective_scan)


def draw(batch=2, length=LENGTH, channels=3, states=2, log_decay=None, seed=0):
    """float32 arrays by argument name. With log_decay: one state, every 17th token's dt A is log_decay, its write mild."""
    random = np.random.default_rng(seed)
    states = states if log_decay is None else 1
    x, dt = random.normal(size=(batch, length, channels)), random.uniform(0.05, 0.5, (batch, length, channels))
    A = -random.uniform(0.5, 2.0, (channels, states))
    B, C = random.normal(size=(2, batch, length, states))
    D, initial = random.normal(size=channels), random.normal(size=(batch, channels, states))
    if log_decay is not None:
        dt[:, 3::17] = log_decay / A[None, None, :, 0]
        x[:, 3::17] /= np.clip(dt[:, 3::17], 1, 1e30)
    arrays = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "initial_state": initial}
    return {name: a.astype(np.float32) for name, a in arrays.items()}


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_it_is_the_formula(implementation):
    arrays = draw(length=5)
    x, dt, A, B, C, D, h = (np.asarray(a, np.float64) for a in arrays.values())
    got, last = selective_scan(**arrays, implementation=implementation)
    for t in range(5):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None]
        assert_close(got[:, t], np.einsum("bdn,bn->bd", h, C[:, t]) + D * x[:, t])
    assert_close(last, h)


def scans_of_groups(x, dt, A, B, C, D, initial_state, **settings):
    """The definition of groups: one scan of the channels of each."""
    split = lambda a, axis: jnp.split(a, B.shape[2], axis)
    maps = (jnp.moveaxis(a, 2, 0) for a in (B, C))
    parts = (split(x, 2), split(dt, 2), split(A, 0), *maps, split(D, 0), split(initial_state, 1))
    names = ("x", "dt", "A", "B", "C", "D", "initial_state")
    scans = [selective_scan(**dict(zip(names, part, strict=True)), **settings) for part in zip(*parts, strict=True)]
    return tuple(jnp.concatenate(outputs, axis) for outputs, axis in zip(zip(*scans, strict=True), (2, 1), strict=True))


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_groups_of_channels_have_input_and_output_maps_of_their_own(implementation):
    arrays = draw(batch=3, length=37, channels=6)
    arrays |= {name: np.stack([arrays[name], 2 * arrays[name][::-1]], axis=2) for name in "BC"}
    wanted = scan_cases.everything64(scans_of_groups, arrays, IDS, implementation="reference")
    assert_close(everything(arrays, IDS, implementation=implementation), wanted)


def test_groups_are_scanned_on_a_mesh():
    arrays = draw(batch=8, length=37, channels=6)
    arrays |= {name: np.stack([arrays[name], 2 * arrays[name]], axis=2) for name in "BC"}
    scan_cases.assert_a_mesh_changes_nothing(selective_scan, arrays, np.resize(IDS, (8, 37)))
    mesh = jax.make_mesh((2, 2, 2), ("fsdp", "seq", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    arrays = draw(batch=8, length=36, channels=8) | {name: np.stack([draw(length=36, batch=8)[name]] * 2, axis=2) for name in "BC"}
    wanted = everything(arrays)
    with jax.set_mesh(mesh):
        assert_close(everything(arrays), wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 2, 16, LENGTH])
def test_values_final_state_and_gradients_are_the_references(implementation, length):
    arrays = draw(length=length)
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_long_rows_with_chunks_of_several_blocks_keep_their_digits(implementation):
    arrays = draw(length=2000)
    assert_close(everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("log_decay", VIOLENT)
def test_violent_decays_lose_no_digits(implementation, log_decay):
    arrays, mild = draw(log_decay=log_decay), exact(draw(states=1))
    scan_cases.assert_close_on_the_scale_of(mild, everything(arrays, implementation=implementation), exact(arrays))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dt", [0.0, 1e6, np.inf])
def test_rows_of_violent_steps_only_are_free_of_nan(implementation, dt):
    arrays = draw(length=20)
    arrays["dt"][:] = dt
    got = everything(arrays, implementation=implementation)
    assert all(np.all(np.isfinite(a)) for a in got.values())


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_an_infinite_step_forgets_everything_and_writes_nothing(implementation):
    arrays = draw(length=20)
    arrays["D"][:] = 0
    arrays["dt"][:, 11] = np.inf
    y, last = selective_scan(**arrays, implementation=implementation)
    assert np.all(np.asarray(y)[:, 11] == 0)
    arrays["initial_state"][:] = 0
    rest = selective_scan(**scan_cases.at(arrays, PER_TOKEN, slice(12, None)), implementation=implementation)
    assert_close((y[:, 12:], last), rest)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("ids", IDS, ids=["short documents", "long gaps", "padding only"])
def test_packed_documents_are_those_run_alone(implementation, ids):
    arrays = draw(batch=1, length=37)
    scan_cases.assert_documents_are_those_run_alone(selective_scan, arrays, PER_TOKEN, ids, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_not_even_a_nan_at_padding_reaches_anything(implementation):
    arrays = draw(batch=1, length=6)
    ids = np.array([[1, 0, 1, 1, 0, 2]], np.int32)
    for name in PER_TOKEN:
        arrays[name][ids == 0] = np.nan
    got = everything(arrays, ids, implementation=implementation)
    assert all(np.all(np.isfinite(a)) for a in got.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cut", [1, 20, pytest.param(12, marks=pytest.mark.slow)])
def test_a_row_cut_anywhere_gives_what_the_whole_row_gives(implementation, cut):
    op = functools.partial(selective_scan, implementation=implementation)
    scan_cases.assert_a_cut_changes_nothing(op, draw(batch=3, length=37), PER_TOKEN, cut)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float64_stays_float64_and_bfloat16_keeps_a_float32_state(implementation):
    scan_cases.assert_dtypes_are_kept(selective_scan, draw(), implementation)


def test_leaving_out_the_skip_and_the_state_means_zeros():
    arrays = draw(length=9)
    zeros = {name: 0 * arrays.pop(name) for name in ("D", "initial_state")}
    assert_close(selective_scan(**arrays), selective_scan(**arrays, **zeros))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["chunkwise", "recurrent"])
def test_vmap_checkpoint_and_scan_compose(implementation):
    op = functools.partial(selective_scan, implementation=implementation)
    scan_cases.assert_vmap_checkpoint_and_scan_compose(op, draw(length=18), "x")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_sharded_inputs_give_the_same_numbers(implementation):
    arrays, ids = draw(batch=8, length=37), np.resize(IDS, (8, 37))
    scan_cases.assert_a_mesh_changes_nothing(selective_scan, arrays, ids, implementation=implementation)


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
        ({"B": jnp.ones((2, 9, 2, 3)), "C": jnp.ones((2, 9, 2, 3))}, r"twice \[b, t, g, n\] with g a divisor of d"),
        ({"B": jnp.ones((2, 9, 5, 3))}, r"shapes \(2, 9, 5\), \(2, 9, 5, 3\), \(2, 9, 3\); wanted \[b, t, d\], and twice"),
        ({"implementation": "chunk"}, "Did you mean 'chunkwise'"),
    ],
)
def test_bad_input_is_refused_with_what_was_wanted(change, message):
    wide, narrow = jnp.ones((2, 9, 5)), jnp.ones((2, 9, 3))
    good = {"x": wide, "dt": wide, "A": -jnp.ones((5, 3)), "B": narrow, "C": narrow}
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**good, **change})
