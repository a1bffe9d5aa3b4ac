"""Gates keep their digits where it matters: near open, near shut, and when both of two are shut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import RELATIVE, assert_close
from seqzoo.nn import complementary, normalised_gates, positive
from seqzoo.nn.gates import exponential_linear, softmax, tanh

X = np.array([-1e4, -200.0, -30.0, -3.0, -0.0, 0.0, 3.0, 30.0, 200.0, 1e4])


def test_two_gates_are_divided_by_their_sum():
    x, y = (a.ravel() for a in np.meshgrid(X[2:-2], X[2:-2]))
    f, i = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-y))
    with jax.enable_x64(True):
        assert_close(normalised_gates(jnp.asarray(x), jnp.asarray(y)), (f / (f + i), i / (f + i)), tolerance=RELATIVE["float64"])


def test_two_closed_gates_add_up_to_one_and_have_gradients():
    x, y = jnp.asarray([-1e4, -1e4, -9e3]), jnp.asarray([-1e4, -9e3, -1e4])
    np.testing.assert_array_equal(normalised_gates(x, y)[0], [0.5, 0.0, 1.0])
    gradient = jax.grad(lambda x: normalised_gates(x, y)[0].sum())(x)
    np.testing.assert_array_equal(gradient, [0.25, 0.0, 0.0])


def test_one_minus_a_gate_is_not_computed_as_a_difference():
    gate, complement = complementary(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(complement[7], np.exp(-30.0), rtol=1e-6)
    np.testing.assert_allclose(gate[2], np.exp(-30.0), rtol=1e-6)
    for part, sign in ((0, 1), (1, -1)):
        slope = jax.vmap(jax.grad(lambda x, part=part: complementary(x)[part]))(jnp.asarray([-30.0, 30.0]))
        np.testing.assert_allclose(slope, np.full(2, sign * np.exp(-30.0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gates_are_wide_and_candidates_keep_their_dtype(dtype):
    x = jnp.asarray(X, dtype)
    assert all(part.dtype == jnp.float32 for part in (*complementary(x), *normalised_gates(x, x)))
    assert positive(x).dtype == dtype


def test_candidates_are_positive_and_join_at_zero():
    np.testing.assert_allclose(positive(jnp.asarray([-3.0, -1e-7, 0.0, 3.0])), [0.04742587, 0.5, 0.5, 3.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [
        (
            exponential_linear,
            lambda x: (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))), np.where(x > 0, 1, np.exp(np.minimum(x, 0)))),
        ),
        (tanh, lambda x: (np.tanh(x), 4 * np.exp(-2 * np.abs(x)) / (1 + np.exp(-2 * np.abs(x))) ** 2)),
    ],
)
def test_saturated_gates_have_all_digits_of_value_and_slope(gate, wanted):
    """At inputs for which elu(x) + 1 and 1 - tanh(x)^2 are differences of nearly equal numbers."""
    x = np.linspace(-25, 25, 101)
    value, slope = wanted(x)
    np.testing.assert_allclose(gate(jnp.asarray(x, jnp.float32)), value, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gate))(jnp.asarray(x, jnp.float32)), slope, rtol=1e-5)


def test_a_saturated_softmax_has_all_digits_of_its_gradient():
    x, dy = np.array([20.0, 1.0, -3.0, 0.5]), np.array([3.0, -1.0, 2.0, 0.7])
    gradient = lambda x, dy: jax.grad(lambda x: jnp.sum(softmax(x) * dy))(x)
    p = np.exp(x) / np.exp(x).sum()
    wanted = np.array([sum(p[j] * p[k] * (dy[j] - dy[k]) for k in range(4) if k != j) for j in range(4)])
    np.testing.assert_allclose(gradient(jnp.asarray(x, jnp.float32), jnp.asarray(dy, jnp.float32)), wanted, rtol=1e-5)
