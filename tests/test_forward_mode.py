"""Forward mode: `jax.jvp`, `jacfwd`, `hessian`, Hessian-vector products of layers, mixers with the reference, and models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.tolerances import assert_close
from seqzoo import channels, mixers
from seqzoo.kernels.attention import attention
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan
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


X = np.random.default_rng(0).standard_normal((1, 5, 2, 2)).astype(np.float32)
FLAT = X.reshape(1, 5, 4)
# A scalar of one array for each op, its array, implementations whose second derivatives work, and those where one order does not.
OPS = {
    "attention": (lambda x, **s: attention(x, x, x, **s)[0], X, {"blockwise": "reverse"}),
    "linear_attention": (
        lambda x, **s: linear_attention(x, x, x, log_decay=-jnp.abs(x), **s)[0],
        X,
        {"recurrent": "reverse", "chunkwise": "forward"},
    ),
    "linear_recurrence": (lambda x, **s: linear_recurrence(jnp.tanh(x), x, **s)[0], FLAT, {"recurrent": "", "chunkwise": ""}),
    "selective_scan": (
        lambda x, **s: selective_scan(x, jnp.abs(x), -jnp.ones((4, 4)), x, x, **s)[0],
        FLAT,
        {"recurrent": "reverse", "chunkwise": "reverse"},
    ),
    "short_convolution": (
        lambda x, **s: short_convolution(x, jnp.ones((2, 4)), segment_ids=jnp.ones((1, 5), jnp.int32), **s)[0],
        FLAT,
        {"xla": "forward"},
    ),
}


@pytest.mark.parametrize(("op", "implementation"), [(op, name) for op in OPS for name in OPS[op][2]])
def test_second_derivatives_of_an_op_are_those_of_the_reference_or_are_refused(op, implementation):
    """Reverse over reverse mode, and forward over reverse mode; forward mode alone is JAX's to refuse."""
    function, x, refused = OPS[op]
    direction = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def products(name):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, implementation=name))))
        return {
            "reverse": lambda x: jax.grad(lambda x: jnp.vdot(gradient(x), direction))(x),
            "forward": lambda x: jax.jvp(gradient, (x,), (direction,))[1],
        }

    wanted = jax.jit(products("reference")["forward"])(x)
    assert_close(jax.jit(products("reference")["reverse"])(x), wanted)
    for mode, product in products(implementation).items():
        if mode != refused[implementation]:
            assert_close(jax.jit(product)(x), wanted, what=mode)
        elif mode == "reverse":
            with pytest.raises(NotImplementedError, match=rf"^{op}: [^\n]*set implementation='reference'"):
                jax.jit(product)(x)
        else:
            with pytest.raises(TypeError, match="forward-mode"):
                jax.jit(product)(x)
