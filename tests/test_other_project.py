"""A layer inside another NNX project: its own jit, remat, scan over layers, mesh with other names, and optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo import mixers

B, T, D, LAYERS = 8, 16, 16, 3
AUTO = jax.sharding.AxisType.Auto


class Block(nnx.Module):
    """A foreign block: theirs around ours."""

    def __init__(self, spec, rngs):
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        self.mixer = mixers.create(spec, D, rngs=rngs)

    def __call__(self, x):
        return x + self.mixer(self.norm(x))[0]


@pytest.fixture(
    scope="module",
    params=["softmax(heads=2)", "gla(heads=2)", pytest.param("mamba2(head_dim=8, state=4)", marks=pytest.mark.slow)],
)
def stack(request):
    """Stacked layers, and the value and gradients of a plain loop over them without any mesh."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    blocks = jax.jit(jax.vmap(lambda key: Block(request.param, nnx.Rngs(key))))(keys)
    x = jax.random.normal(jax.random.key(1), (B, T, D))

    def loop(blocks, x):
        for i in range(LAYERS):
            x = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)(x)
        return jnp.mean(x**2)

    return blocks, x, jax.jit(jax.value_and_grad(loop))(blocks, x)


def scanned(blocks, x, remat):
    body = lambda x, block: (block(x), None)
    return jnp.mean(jax.lax.scan(jax.checkpoint(body) if remat else body, x, blocks)[0] ** 2)


@pytest.mark.parametrize("remat", [False, True])
def test_a_layer_works_under_another_projects_jit_scan_and_remat(stack, remat):
    blocks, x, wanted = stack
    assert_close(jax.jit(jax.value_and_grad(lambda b, x: scanned(b, x, remat)))(blocks, x), wanted)


@pytest.mark.parametrize("axes", [("data", "model"), ("fsdp", "tensor"), ("data", "seq")], ids=str)
def test_a_layer_works_on_another_projects_mesh(stack, axes):
    """Names that mean nothing to us, names that do, and a mixture."""
    blocks, x, wanted = stack
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AUTO, AUTO))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, jax.NamedSharding(mesh, jax.P(axes[0])))
        result = jax.jit(jax.value_and_grad(lambda b, x: scanned(b, x, True)))(blocks, rows)
    assert_close(result, wanted)


def test_nnx_filters_see_parameters_only():
    _, parameters, rest = nnx.split(Block("gla(heads=2)", nnx.Rngs(0)), nnx.Param, ...)
    assert not jax.tree.leaves(rest)
    assert all(np.issubdtype(leaf.dtype, np.floating) for leaf in jax.tree.leaves(parameters))
