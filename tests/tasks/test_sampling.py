"""Sampling without replacement against the sequential definition, by counting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqzoo.tasks.sampling import uniform_without_replacement, weighted_without_replacement

DRAWS = 40_000


def frequencies(draw, outcomes):
    """Frequency of each ordered outcome over DRAWS keys."""
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    assert drawn.dtype == np.int32
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    table = dict(zip(map(tuple, found.tolist()), counts / DRAWS, strict=True))
    assert set(table) <= set(outcomes)
    return np.array([table.get(outcome, 0.0) for outcome in outcomes])


def assert_same_law(observed, expected):
    worst = np.max(np.abs(observed - expected) / np.sqrt(expected * (1 - expected) / DRAWS + 1e-12))
    assert worst < 5.5, f"an outcome is {worst:.1f} standard deviations off"


@pytest.mark.parametrize(("population", "count"), [(5, 1), (5, 3), (4, 4), (1, 1)])
def test_every_ordered_choice_is_equally_likely(population, count):
    outcomes = list(itertools.permutations(range(population), count))
    observed = frequencies(lambda key: uniform_without_replacement(jax.random.bits(key, count), population), outcomes)
    assert_same_law(observed, np.full(len(outcomes), 1 / len(outcomes)))


def test_a_whole_population_and_a_large_one_come_without_repeats():
    everything = uniform_without_replacement(jax.random.bits(jax.random.key(1), 127), 127)
    assert sorted(everything.tolist()) == list(range(127))
    some = uniform_without_replacement(jax.random.bits(jax.random.key(2), 64), 2**31 - 2)
    assert len(set(some.tolist())) == 64 and int(some.min()) >= 0 and int(some.max()) > 2**29


def test_weighted_draws_are_sequential_draws_renormalised_after_each():
    weights = np.array([0.5, 0.25, 0.15, 0.1])
    outcomes = list(itertools.permutations(range(4), 2))
    expected = np.array([weights[a] * weights[b] / (1 - weights[a]) for a, b in outcomes])
    log_weights = jnp.log(jnp.asarray(7 * weights, jnp.float32))
    observed = frequencies(lambda key: weighted_without_replacement(jax.random.bits(key, 4), log_weights, 2), outcomes)
    assert_same_law(observed, expected)
