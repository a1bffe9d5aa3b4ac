"""Workarounds for XLA:CPU: each gives the values and gradients of the plain operation that it replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from helpers.tolerances import assert_close
from seqzoo.kernels.common import xla_cpu


def draw(*shapes):
    noise = np.random.default_rng(0)
    return tuple(noise.standard_normal(shape).astype(np.float32) for shape in shapes)


def steps(scan):
    """Last state and outputs of a recurrence, by that scan."""
    return lambda start, xs: scan(lambda s, x: (jnp.sin(s) + x, s * x), start, xs)


POSITIONS = np.arange(8, dtype=np.int32).reshape(2, 4)

CASES = {
    "matmul of rows": (xla_cpu.matmul, jnp.matmul, draw((4, 3, 6), (6, 5))),
    "matmul of a vector": (xla_cpu.matmul, jnp.matmul, draw((6,), (6, 5))),
    "matmul of no rows": (xla_cpu.matmul, jnp.matmul, draw((0, 3, 6), (6, 5))),
    # At most 16 rows and columns take the path that stores a transposed gradient.
    "small product": (
        lambda x, y: xla_cpu.product("zik,zjk->zij", x, y),
        lambda x, y: jnp.einsum("zik,zjk->zij", x, y),
        draw((3, 4, 5), (3, 6, 5)),
    ),
    "large product": (
        lambda x, y: xla_cpu.product("zik,zkj->zij", x, y),
        lambda x, y: jnp.einsum("zik,zkj->zij", x, y),
        draw((3, 20, 5), (3, 5, 18)),
    ),
    "product with a broadcast weight": (
        lambda x, y: xla_cpu.product("...i,ij->...j", x, y),
        lambda x, y: jnp.einsum("...i,ij->...j", x, y),
        draw((2, 3, 4), (4, 5)),
    ),
    "sum over columns": (lambda x: xla_cpu.sum_keepdims(x, -1), lambda x: jnp.sum(x, -1, keepdims=True), draw((3, 4, 5))),
    "sum over rows": (lambda x: xla_cpu.sum_keepdims(x, -2), lambda x: jnp.sum(x, -2, keepdims=True), draw((3, 4, 5))),
    "sum in a loop": (
        lambda x: xla_cpu.sum_in_loop(x, np.ones((3, 4), np.float32)),
        lambda x: jnp.sum(x, axis=1),
        draw((3, 4, 5)),
    ),
    "order after": (
        lambda o: xla_cpu.order_after(POSITIONS, o) * o,
        lambda o: lax.optimization_barrier((POSITIONS, lax.stop_gradient(o)))[0] * o,
        draw((2, 4)),
    ),
    "cumsum": (xla_cpu.cumsum, lambda x: jnp.cumsum(x, axis=0), draw((5, 2, 3))),
    "scan": (steps(xla_cpu.scan), steps(lax.scan), draw((3,), (7, 3))),
    "materialise": (lambda x: xla_cpu.materialise(x) * x, lambda x: x * x, draw((3, 4))),
    "broadcast along few rows": (
        lambda x: xla_cpu.broadcast(x, (2, 8, 5)),
        lambda x: jnp.broadcast_to(x, (2, 8, 5)),
        draw((2, 1, 5)),
    ),
    "broadcast along many rows": (
        lambda x: xla_cpu.broadcast(x, (2, 20, 5)),
        lambda x: jnp.broadcast_to(x, (2, 20, 5)),
        draw((2, 1, 5)),
    ),
    "broadcast along columns": (
        lambda x: xla_cpu.broadcast(x, (2, 4, 5)),
        lambda x: jnp.broadcast_to(x, (2, 4, 5)),
        draw((2, 4, 1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_operation(name):
    ours, plain, arrays = CASES[name]

    def both(function):
        """Outputs, and gradients of a function of them that weighs every element differently."""

        def loss(*arrays):
            out = function(*arrays)
            return sum(jnp.sum(jnp.sin(x + jnp.arange(x.size).reshape(x.shape))) for x in jax.tree.leaves(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)

    assert_close(both(ours), both(plain))


@pytest.mark.parametrize("name", [name for name in CASES if "product" not in name])
def test_other_devices_get_the_plain_operation(name, monkeypatch):
    """`product` is skipped: it has the same gradient everywhere, without the stored transposition."""
    ours, plain, arrays = CASES[name]
    monkeypatch.setattr(xla_cpu.implementations, "platform", lambda: "gpu")
    primitives = lambda function: sorted(equation.primitive.name for equation in jax.make_jaxpr(function)(*arrays).eqns)
    assert primitives(ours) == primitives(plain)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -np.inf, np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ordering_after_any_output_does_not_change_positions(value, dtype):
    np.testing.assert_array_equal(xla_cpu.order_after(POSITIONS, jnp.full((2, 4), value, dtype)), POSITIONS)
