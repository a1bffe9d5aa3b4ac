"""Tokens are drawn from the distribution that the settings describe, found here by brute force in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqzoo.generation.sampling import GREEDY, Sampling, candidates, choose

LOGITS = np.array([[0.3, 2.0, -1.0, 2.0, 0.3, 1.1, -4.0], [5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)  # with ties
SETTINGS = [
    (1.0, None, None),
    (0.5, None, None),
    (3.0, 3, None),
    (1.0, 1, None),
    (1.0, 7, None),
    (1.0, None, 0.8),
    (0.7, None, 1e-6),
    (2.0, 5, 0.65),
]


def distribution(logits, temperature, top_k, top_p):
    """Probabilities of one row in float64: tokens in order of probability, of equals the lower id first; cut; normalised."""
    weights = np.exp(np.asarray(logits, np.float64) / temperature)
    order = sorted(range(len(weights)), key=lambda token: (-logits[token], token))
    order = order[:top_k]
    if top_p is not None:
        kept, total = [], 0.0
        for token in order:
            if total >= top_p * weights[order].sum():
                break
            kept.append(token)
            total += weights[token]
        order = kept
    p = np.zeros(len(weights))
    p[order] = weights[order] / weights[order].sum()
    return p


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_candidates_have_the_probabilities_of_the_definition(temperature, top_k, top_p):
    weights, ids = candidates(jnp.asarray(LOGITS), jnp.float32(temperature), top_k, None if top_p is None else jnp.float32(top_p))
    p = np.zeros(LOGITS.shape)
    np.put_along_axis(p, np.asarray(ids), np.asarray(jax.nn.softmax(weights, axis=-1)), axis=1)
    wanted = [distribution(row, temperature, top_k, top_p) for row in LOGITS]
    np.testing.assert_allclose(p, wanted, atol=1e-6)
    np.testing.assert_array_equal(p > 0, np.array(wanted) > 0)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [SETTINGS[0], SETTINGS[2], SETTINGS[7]])
def test_draws_are_distributed_as_the_definition_says(temperature, top_k, top_p):
    """Chi-squared over 20,000 keys: its mean is the number of degrees of freedom, its standard deviation sqrt(2 of them)."""
    count, row = 20_000, LOGITS[0]
    sampling = Sampling(
        jax.random.split(jax.random.key(0), count), jnp.float32(temperature), None if top_p is None else jnp.float32(top_p)
    )
    drawn = jax.jit(choose, static_argnums=3)(jnp.tile(row, (count, 1)), sampling, jnp.int32(3), top_k)
    seen = np.bincount(drawn, minlength=len(row))
    wanted = count * distribution(row, temperature, top_k, top_p)
    assert np.all(seen[wanted == 0] == 0)
    some = wanted > 0
    freedom = some.sum() - 1
    assert np.sum((seen - wanted)[some] ** 2 / wanted[some]) < freedom + 5 * np.sqrt(2 * freedom)


def test_steps_draw_independently():
    """The draws of one key at successive steps pass for draws of many keys."""
    sampling = Sampling(jax.random.key(0)[None], jnp.float32(1), None)
    draw = jax.jit(jax.vmap(lambda step: choose(jnp.asarray(LOGITS[:1]), sampling, step, None)[0]))
    seen = np.bincount(draw(jnp.arange(20_000)), minlength=LOGITS.shape[1])
    wanted = 20_000 * distribution(LOGITS[0], 1.0, None, None)
    assert np.sum((seen - wanted) ** 2 / wanted) < 6 + 5 * np.sqrt(12)


def test_a_minute_temperature_draws_the_most_probable_token_as_does_none():
    """Without an overflow on the way."""
    logits = jnp.asarray(1e4 * LOGITS[:, [0, 1, 2, 4, 5, 6]])
    sampling = Sampling(jax.random.split(jax.random.key(0), 2), jnp.float32(1e-37), None)
    assert choose(logits, sampling, jnp.int32(0), None).tolist() == [1, 0]
    assert choose(logits, GREEDY, jnp.int32(0), None).tolist() == [1, 0]


def test_greedy_takes_the_lowest_of_equal_ids():
    assert choose(jnp.asarray(LOGITS), GREEDY, jnp.int32(0), None).tolist() == [1, 0]
