"""The running maximum against a plain loop of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.collectives import moved
from helpers.scan_cases import IDS, VIOLENT, carried_on
from helpers.tolerances import RELATIVE, assert_close
from seqzoo.kernels.common import explain, sharding
from seqzoo.kernels.common.running_max import running_max

jitted = jax.jit(running_max)
B, T = IDS.shape
H = 4
CARRIED = np.array([5, 3, 2], np.int32)  # row 0's state belongs to its first document


def read_aloud(x, decay, first, ids=None, segment=None):
    """(m_{t-1}, m_t) in float64, one token at a time; no arithmetic with -inf but the sum of two of them."""
    m, before, after = np.array(first, np.float64), [], []
    ids = np.ones(x.shape[:2], int) if ids is None else ids
    segment = np.zeros(len(x), int) if segment is None else np.array(segment)
    for t in range(x.shape[1]):
        real = ids[:, t] != 0
        new = real & (segment != 0) & (ids[:, t] != segment)
        m = np.where(new[:, None], -np.inf, m)
        before.append(np.where(real[:, None], m, -np.inf))
        m = np.where(real[:, None], np.maximum(m + decay[:, t], x[:, t]), m)
        after.append(m)
        segment = np.where(real, ids[:, t], segment)
    return np.stack(before, axis=1), np.stack(after, axis=1)


def inputs(t=T, b=B, violent=None):
    random = np.random.default_rng(0)
    x, decay = 10 * random.standard_normal((b, t, H)), -random.exponential(size=(b, t, H))
    x[:, ::5, 0] = -np.inf  # nothing is written
    if violent is not None:
        decay[:, ::17] = violent
    return x.astype(np.float32), decay.astype(np.float32), random.standard_normal((b, H)).astype(np.float32)


def assert_equal_where_finite(got, wanted):
    """-inf at the same places, and the same numbers elsewhere."""
    for g, w in zip(got, wanted, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w)
        assert np.array_equal(np.isneginf(g), np.isneginf(w)) and np.array_equal(np.isfinite(g), np.isfinite(w))
        assert_close(g[np.isfinite(w)], w[np.isfinite(w)])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("violent", [None, *VIOLENT])
def test_it_is_the_loop_at_mild_and_violent_decays(violent, packed):
    x, decay, first = inputs(violent=violent)
    ids, segment = (IDS, CARRIED) if packed else (None, None)
    got = jitted(x, log_decay=decay, initial_state=first, initial_segment=segment, segment_ids=ids)
    assert_equal_where_finite(got, read_aloud(x, decay, first, ids, segment))


def test_without_decay_or_state_it_is_the_plain_maximum():
    x, _, _ = inputs()
    wanted = np.maximum.accumulate(x, axis=1)
    before, maximum = jitted(x)
    assert np.array_equal(maximum, wanted)
    assert np.all(np.isneginf(before[:, 0])) and np.array_equal(before[:, 1:], wanted[:, :-1])


def test_nothing_is_lost_after_a_large_decay():
    """A difference of running sums would know the later decays to 1e6 * 1e-7 only."""
    decay = np.full((1, 64, 1), -1e-3, np.float32)
    decay[:, 3] = -1e6
    x = np.full((1, 64, 1), -np.inf, np.float32)
    x[:, 8] = 1.0
    _, maximum = jitted(x, log_decay=decay)
    assert_close(maximum[0, 8:, 0], 1 - 1e-3 * np.arange(56), tolerance=1e-6)


@pytest.mark.parametrize("cut", [13, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 36))])
def test_pieces_in_turn_give_the_whole(cut):
    x, decay, first = inputs()
    whole = jitted(x, log_decay=decay, initial_state=first, initial_segment=CARRIED, segment_ids=IDS)
    head, tail = slice(0, cut), slice(cut, None)

    def run(tokens, **carried):
        return jitted(x[:, tokens], log_decay=decay[:, tokens], segment_ids=IDS[:, tokens], **carried)

    one = run(head, initial_state=first, initial_segment=CARRIED)
    two = run(tail, initial_state=one[1][:, -1], initial_segment=carried_on(CARRIED, IDS[:, head]))
    assert_equal_where_finite([jnp.concatenate(pair, axis=1) for pair in zip(one, two, strict=True)], whole)


@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (1, 1, 8, 1)])
@pytest.mark.parametrize("violent", [None, -1e4, -np.inf])
def test_cut_over_a_mesh_it_is_the_loop(sizes, violent):
    x, decay, first = inputs(t=32, b=2, violent=violent)
    ids = np.array([[0] * 2 + [1] * 9 + [2] * 5 + [0] * 4 + [2] * 4 + [3] * 8, [5] * 16 + [6] * 16], np.int32)
    segment = np.array([1, 5], np.int32)
    mesh = jax.make_mesh(sizes, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    run = lambda x, decay: running_max(x, log_decay=decay, initial_state=first, initial_segment=segment, segment_ids=ids)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, jax.NamedSharding(mesh, jax.P(sharding.BATCH, sharding.TIME))) for a in (x, decay)]
        assert f"time over seq={sizes[2]}" in next(line for line in explain(run, *placed) if line.startswith("running_max"))
        got = jax.jit(run)(*placed)
    assert_equal_where_finite(got, read_aloud(x, decay, first, ids, segment))


def test_cut_over_a_mesh_states_move_and_sequences_do_not():
    mesh = jax.make_mesh((1, 1, 8, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    totals = []
    for t in (64, 1024):
        with jax.set_mesh(mesh):
            placed = [jax.device_put(a, jax.NamedSharding(mesh, jax.P(None, "seq"))) for a in inputs(t=t, b=1)[:2]]
            run = jax.jit(lambda x, decay: running_max(x, log_decay=decay)[1])
            totals.append(moved(run.lower(*placed).compile()))
    assert totals[0] and totals[0] == totals[1]


def test_its_gradient_goes_to_the_largest_and_to_the_decays_since():
    x, decay, first = inputs(t=9)
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def loop(x, decay, first):
        maxima = [first]
        for t in range(x.shape[1]):
            maxima.append(jnp.maximum(maxima[-1] + decay[:, t], x[:, t]))
        return jnp.stack(maxima[1:], axis=1)

    op = lambda x, decay, first: running_max(x, log_decay=decay, initial_state=first)[1]
    found, wanted = (jax.vjp(run, x, decay, first)[1] for run in (op, loop))
    assert_close(found(dy), wanted(dy))


def test_dtypes_are_kept():
    x, decay, first = inputs()
    x = np.where(np.isfinite(x), x, 0)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, decay, first)]
    before, maximum = jitted(low[0], log_decay=low[1], initial_state=low[2])
    assert before.dtype == maximum.dtype == jnp.bfloat16
    wanted = read_aloud(*(np.asarray(a, np.float64) for a in low))
    assert_close(maximum, wanted[1], tolerance=RELATIVE["bfloat16"])
