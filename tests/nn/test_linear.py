"""The dense projection: its gradients are those of a plain product of matrices, wherever it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo.nn import Linear

LAYER = Linear(6, 5, bias=True, rngs=nnx.Rngs(0))


def plain(w, b, x):
    return (jnp.sin(jnp.tensordot(x, w, axes=1) + jnp.expand_dims(b, range(x.ndim - 1))) ** 2).sum()


def ours(w, b, x):
    graphdef, _ = nnx.split(LAYER)
    return (jnp.sin(nnx.merge(graphdef, nnx.State({"w": nnx.Param(w), "b": nnx.Param(b)}))(x)) ** 2).sum()


@pytest.mark.parametrize("shape", [(6,), (7, 6), (4, 3, 6), (0, 6)])
def test_gradients_are_those_of_a_plain_product(shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    arguments = LAYER.w[...], LAYER.b[...], x
    got, wanted = (jax.value_and_grad(f, argnums=(0, 1, 2))(*arguments) for f in (ours, plain))
    assert_close(got, wanted)


def test_in_a_callers_shard_map_the_weights_gradient_is_the_sum_over_devices():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 3, 6)), jnp.float32)
    cut = jax.shard_map(
        lambda w, b, x: jax.lax.psum(ours(w, b, x), "rows"),
        mesh=mesh,
        in_specs=(jax.P(), jax.P(), jax.P("rows")),
        out_specs=jax.P(),
    )
    arguments = LAYER.w[...], LAYER.b[...], x
    got, wanted = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*arguments) for f in (cut, plain))
    assert_close(got, wanted)
