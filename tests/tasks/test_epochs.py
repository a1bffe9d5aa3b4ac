"""Orders addressed by step: permutations, epochs that visit everything once, turns in proportion to weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqzoo.tasks.epochs import Endless, Epochs, bijection, hashed

# Upper 1e-6 quantile of chi-square by Wilson & Hilferty (1931); within a few per cent for 3 degrees of freedom and more.
Z = 4.753


def chi_square_limit(freedom):
    return freedom * (1 - 2 / (9 * freedom) + Z * np.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 100, 1000, 1025])
def test_the_bijection_is_a_permutation_and_equal_on_host_and_device(size):
    key = hashed(5, size)
    host = [bijection(index, size, key) for index in range(size)]
    assert sorted(host) == list(range(size))
    device = bijection(jnp.arange(size, dtype=jnp.uint32), size, key)
    assert device.tolist() == host


def test_large_sizes_stay_inside_and_do_not_collide():
    size = 2**31
    out = np.asarray(bijection(jnp.arange(4096, dtype=jnp.uint32) * jnp.uint32(524287), size - 1, 7), np.int64)
    assert len(set(out)) == 4096 and out.max() < size - 1 and out.max() > size // 2


@pytest.mark.parametrize("size", [2, 3, 5, 12, 100])
def test_every_place_gets_every_number_equally_often_over_keys(size):
    keys = 200 * size
    counts = np.zeros((size, size))
    for key in range(keys):
        for place in {0, size // 2, size - 1}:
            counts[place, bijection(place, size, hashed(key))] += 1
    for place in {0, size // 2, size - 1}:
        statistic = np.sum((counts[place] - keys / size) ** 2) / (keys / size)
        assert statistic < max(chi_square_limit(size - 1), 24), f"size {size}, place {place}: {statistic}"


def test_neighbours_in_an_epoch_are_as_far_apart_as_in_a_shuffle():
    size = 1001
    out = np.array([bijection(index, size, 3) for index in range(size)])
    correlation = np.corrcoef(out[:-1], out[1:])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(size)


def test_the_hash_depends_on_the_order_of_its_words():
    assert hashed(1, 2) != hashed(2, 1) and hashed(0) != hashed(0, 0)
    assert int(hashed(3, jnp.uint32(2**32 - 1))) == hashed(3, 2**32 - 1)


@pytest.mark.parametrize(("sizes", "batch"), [((10,), 10), ((11,), 2), ((23, 9, 14), 4), ((5, 7, 6), 1)])
def test_an_epoch_visits_each_batch_once_and_each_example_at_most_once(sizes, batch):
    order = Epochs(sizes, batch, seed=1)
    steps = sum(size // batch for size in sizes)
    examples = jax.jit(order.examples, static_argnums=0)
    dropped = []
    for epoch in range(3):
        seen = [[] for _ in sizes]
        for step in range(epoch * steps, (epoch + 1) * steps):
            segment = order.segment(step)
            seen[segment] += examples(segment, step).tolist()
        for size, found in zip(sizes, seen, strict=True):
            assert len(found) == len(set(found)) == size // batch * batch
            assert set(found) <= set(range(size))
        dropped.append(frozenset(range(sizes[-1])) - set(seen[-1]))
    if sizes == (23, 9, 14):
        assert len(set(dropped)) > 1, "every epoch leaves out the same examples"


def test_epochs_and_seeds_have_different_orders():
    first = [Epochs((64,), 64, seed=0).examples(0, epoch).tolist() for epoch in range(2)]
    other = Epochs((64,), 64, seed=1).examples(0, 0).tolist()
    assert first[0] != first[1] and first[0] != other


def test_segments_are_interleaved_not_in_blocks():
    order = Epochs((400, 400), 4, seed=0)
    turns = np.array([order.segment(step) for step in range(200)])
    assert turns.sum() == 100
    assert 60 < np.sum(turns[1:] != turns[:-1]) < 140


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0, 0.5), (0.01, 5.0)])
def test_endless_turns_follow_the_weights_over_any_stretch(weights):
    order = Endless(weights, seed=4)
    turns = np.array([order.segment(step) for step in range(2000)])
    for start in (0, 137, 10**3):
        stretch = turns[start : start + 700]
        for segment, weight in enumerate(weights):
            assert abs(np.sum(stretch == segment) - 700 * weight / sum(weights)) < 6
    assert [Endless(weights, seed=5).segment(step) for step in range(50)] != turns[:50].tolist() or min(weights) < 0.1


def test_numpy_arrays_are_hashed_on_the_host_to_the_same_numbers():
    numbers = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    found = hashed(3, numbers, 5)
    assert isinstance(found, np.ndarray) and found.tolist() == [hashed(3, int(number), 5) for number in numbers]
