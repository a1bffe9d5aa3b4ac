"""Forward mode: `jax.jvp`, `jacfwd`, `hessian`, Hessian-vector products of layers, mixers with the reference, and models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo import channels, mixers
from seqzoo.model import LanguageModel
from seqzoo.nn import LayerNorm, Linear, RMSNorm

WIDTH, LENGTH = 16, 6
CHANNELS = ("swiglu", "geglu", "gelu", "rwkv")
# By default one mixer for each op.
FAMILIES = ("softmax", "linear", "mamba", "hgrn", "base_conv")
SMALL = {"mamba2": "head_dim=16"}


def reference(name):
    """Spec of a mixer whose op, if it has one, is the reference."""
    has_op = "implementation" in mixers.registry.get(name).Settings.model_fields
    settings = [*(["implementation='reference'"] if has_op else []), *filter(None, [SMALL.get(name)])]
    return f"{name}({', '.join(settings)})"


def check(function, arguments):
    """Tangents of a scalar are <gradient, direction>, and its Hessian, found by forward over reverse mode, is symmetric."""
    noise = np.random.default_rng(3)
    draw = lambda: jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape).astype(np.float32), arguments)
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: np.vdot(x, y), a, b)))
    size = lambda a: np.sqrt(dot(a, a))
    run = jax.jit(lambda at, direction: jax.jvp(jax.value_and_grad(function), (at,), (direction,)))
    u, v = draw(), draw()
    ((_, gradient), (tangent, h_u)), (_, (_, h_v)) = run(arguments, u), run(arguments, v)
    assert_close(tangent, dot(gradient, u), tolerance=1e-4, scale=float(size(gradient)))
    assert size(h_u) > 0
    assert_close(dot(v, h_u), dot(u, h_v), tolerance=1e-4, scale=float(size(h_u)))


def loss_of(layer, x):
    """(a scalar function of the layer's parameters and of x, these)."""
    graphdef, params = nnx.split(layer)

    def loss(arguments):
        params, x = arguments
        y = nnx.merge(graphdef, params)(x)
        return jnp.sum(jnp.sin(y[0] if isinstance(y, tuple) else y))

    return loss, (params, x)


def rows():
    return np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in mixers.names()]
)
def test_a_mixer_with_the_reference_has_forward_mode(name):
    check(*loss_of(mixers.create(reference(name), WIDTH, rngs=nnx.Rngs(0)), rows()))


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_mixer_has_forward_mode(name):
    check(*loss_of(channels.create(name, WIDTH, rngs=nnx.Rngs(0)), rows()))


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_a_model_has_forward_mode(remat):
    layers = (reference("softmax"), reference("gla"))
    model = LanguageModel(11, WIDTH, layers=layers, remat=remat, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    tokens = np.random.default_rng(0).integers(0, 11, (2, LENGTH)).astype(np.int32)
    check(lambda params: jnp.mean(jnp.sin(nnx.merge(graphdef, params)(tokens)[0])), params)


@pytest.mark.parametrize(
    "layer", [Linear(WIDTH, 3, bias=True, rngs=nnx.Rngs(0)), RMSNorm(WIDTH), LayerNorm(WIDTH)], ids=lambda x: type(x).__name__
)
def test_jacobians_and_hessians_of_a_layer_are_those_of_reverse_mode(layer):
    x = rows()[0, :2]
    assert_close(jax.jit(jax.jacfwd(layer))(x), jax.jit(jax.jacrev(layer))(x))
    loss = lambda x: jnp.sum(jnp.sin(layer(x)))
    assert_close(jax.jit(jax.hessian(loss))(x), jax.jit(jax.jacrev(jax.jacrev(loss)))(x))
