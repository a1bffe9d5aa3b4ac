"""Exponential gates: in range, exact where they must be, with the gradients of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers.tolerances import RELATIVE, assert_close
from seqzoo.nn import exponential_gates, subtract_maximum

INF = np.inf


def test_one_of_two_weights_is_always_one():
    a = jnp.array([0.0, -INF, 3.0, -INF, -1e6, 5.0], np.float32)
    b = jnp.array([1.0, 2.0, -INF, -INF, 1e6, 5.0], np.float32)
    first, second = subtract_maximum(a, b)
    np.testing.assert_array_equal(first, [-1.0, -INF, 0.0, 0.0, -2e6, 0.0])
    np.testing.assert_array_equal(second, [0.0, 0.0, -INF, -INF, 0.0, 0.0])


def test_a_state_to_which_nothing_is_written_loses_no_digit():
    """Its maximum decays with it. A difference of rounded maxima would add a rounding error per token."""
    x = np.full((1, 4096, 1), -INF, np.float32)
    x[:, 0] = 10.0
    decay = -1e-3 * np.random.default_rng(0).random(x.shape).astype(np.float32)
    gates = jax.jit(exponential_gates)(x, decay)
    assert not np.any(gates.log_decay[:, 1:]) and np.all(np.isneginf(gates.log_weight[:, 1:]))
    assert_close(gates.maximum[0, -1, 0], 10 + decay[0, 1:].sum(dtype=np.float64))


def test_the_state_is_the_plain_sum_over_its_largest_weight_and_so_are_gradients():
    """h_t = sum of exp(x_s + g_{s+1} + ... + g_t) v_s over the sum of the same without v, at all weights a float64 can hold."""
    random = np.random.default_rng(0)
    x, decay, v = 40 * random.standard_normal((2, 12, 3)), -random.exponential(size=(2, 12, 3)), random.standard_normal((2, 12, 3))

    def gated(x, decay, v):
        gates = exponential_gates(x, decay)

        def step(carry, token):
            keep, write, v = token
            above, below = jnp.exp(keep) * carry[0] + jnp.exp(write) * v, jnp.exp(keep) * carry[1] + jnp.exp(write)
            return (above, below), above / below

        zero = jnp.zeros_like(x[:, 0])
        tokens = [jnp.moveaxis(z, 1, 0) for z in (gates.log_decay, gates.log_weight, v)]
        return jnp.moveaxis(jax.lax.scan(step, (zero, zero), tuple(tokens))[1], 0, 1)

    def plain(x, decay, v):
        total = jnp.cumsum(decay, axis=1)
        pairs = total[:, :, None] - total[:, None] + x[:, None]
        weights = jnp.exp(jnp.where(jnp.tril(jnp.ones((12, 12), bool))[None, :, :, None], pairs, -INF))
        return (weights * v[:, None]).sum(2) / weights.sum(2)

    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in (x, decay, v)]
        pulled = [jax.vjp(jax.jit(form), *arguments) for form in (gated, plain)]
        dy = jnp.asarray(random.standard_normal(x.shape))
        got, wanted = ((y, pull(dy)) for y, pull in pulled)
        assert_close(got, wanted, tolerance=RELATIVE["float64"])
