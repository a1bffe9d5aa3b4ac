"""States stored divided by exp(maximum): their derivatives are those of a function of the state as it is, the maximum included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.testing import MixerUnderTest
from seqzoo.testing.mixer_under_test import split_floats

IDS = np.array([[5, 5, 0, 5, 7], [5, 5, 5, 5, 5]], np.int32)  # row 0 ends with another document
GATES = (-20.0, -10.0, 0.0, 5.0, 10.0, 13.0, 15.0, 20.0)


def check_against_central_differences(run, argument, tolerance=1e-6, step=1e-4):
    """The gradient of run [float64] with respect to a flat argument."""
    compiled = jax.jit(run)
    gradient, wanted = jax.jit(jax.grad(run))(argument), np.zeros(argument.shape)
    for i in range(argument.size):
        change = np.zeros(argument.size)
        change[i] = step
        change = change.reshape(argument.shape)
        wanted[np.unravel_index(i, argument.shape)] = (compiled(argument + change) - compiled(argument - change)) / (2 * step)
    assert_close(gradient, wanted, tolerance=tolerance)


@pytest.mark.parametrize("spec", ["aaren(heads=2)", "mlstm(heads=2)", "rwkv4"])
def test_the_gradient_to_the_maximum_of_a_state_is_that_of_central_differences(spec):
    """Through the outputs, and through every leaf of the final state."""
    it = MixerUnderTest(spec, d_model=4)
    x, dy, dstate = (jax.tree.map(lambda a: np.asarray(a[:, :5] if a.ndim == 3 else a, np.float64), part) for part in it.inputs(1))
    dstate = [np.asarray(leaf, np.float64) for leaf in it.inputs(1)[2]]
    with jax.enable_x64(True):
        params, state = jax.tree.map(lambda a: a if a.dtype == np.int32 else np.asarray(a, np.float64), (it.params, it.state))

        def run(maximum):
            y, new = it.forward(params, state._replace(maximum=maximum), x, jnp.asarray(IDS))
            return jnp.sum(y * dy) + sum(jnp.sum(a * b) for a, b in zip(split_floats(new)[0], dstate, strict=True))

        check_against_central_differences(run, jnp.asarray(state.maximum))


@pytest.mark.parametrize("implementation", ["reference", "chunkwise"])
def test_the_gradient_to_an_input_gate_of_mlstm_is_that_of_central_differences(implementation):
    """Also where q . k is tiny and the gate large: there 1e-6, added to the denominator over exp(m), is most of it."""
    spec = f"mlstm(heads={len(GATES)}, gate_cap=None, implementation={implementation!r})"
    with jax.enable_x64(True):
        mixer = mixers.create(spec, 32, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        mixer.q.w[...] = 1e-6 * mixer.q.w[...]
        graphdef, params = nnx.split(mixer)
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 32)))
        dy = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 32)))

        def run(bias):
            leaves = [bias if jax.tree_util.keystr(path).startswith("['input']['bias']") else leaf for path, leaf in flat]
            return jnp.sum(nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(x)[0] * dy)

        for shift in (0.0, 0.5):
            check_against_central_differences(run, jnp.asarray(GATES) + shift)
