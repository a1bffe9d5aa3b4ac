"""Every mixer as a Linen module inside the Linen model of another project."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import seqzoo.linen
from helpers.tolerances import assert_close
from seqzoo import mixers

B, T, D = 2, 12, 32
FIRST = ("softmax", "lru", "rwkv6")  # a cache, two planes, a tail and a depth; the wrapper knows no mixer by name
SLOW = ("gated_deltanet", "gsa", "mamba2", "min_lstm", "rwkv7")  # other states and parameters
ALONE = {"rwkv7": "rwkv7(first_value=False)"}  # otherwise it has parameters that wait for the values of an earlier layer
tier = lambda name: () if name in FIRST else pytest.mark.slow if name in SLOW else pytest.mark.exhaustive
every = pytest.mark.parametrize("spec", [pytest.param(ALONE.get(name, name), marks=tier(name)) for name in mixers.names()])


class Net(nn.Module):
    """A foreign model with one of our layers in the middle."""

    spec: str

    @nn.compact
    def __call__(self, x, state=None, segment_ids=None):
        x = nn.Dense(D)(x)
        y, state = seqzoo.linen.create(self.spec, D, name="mixer")(x, state=state, segment_ids=segment_ids)
        return nn.Dense(3)(x + y), state


def data(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, T, D))


@every
def test_in_a_linen_model_it_is_the_same_layer(spec):
    """init, apply, jit and grad; pieces with a state; and the NNX module with these parameters."""
    net, x = Net(spec), data()
    noise = np.random.default_rng(0)  # some layers start with an output of zero, which would hide the gradients of the rest
    perturb = lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(p.dtype)
    variables = jax.tree.map(perturb, jax.jit(net.init)(jax.random.key(0), x))
    apply = jax.jit(net.apply)
    y, state = apply(variables, x)
    assert state is None and set(variables) == {"params"}

    empty = seqzoo.linen.init_state(spec, D, B, max_length=T)
    first, middle = apply(variables, x[:, :6], empty)
    rest, _ = apply(variables, x[:, 6:], middle)
    assert_close(jnp.concatenate([first, rest], axis=1), y, what=spec)

    gradient = jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, x)[0] ** 2)))(variables)["params"]["mixer"]
    own = mixers.create(spec, D, rngs=nnx.Rngs(0))
    graphdef, parameters = nnx.split(own)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, nnx.to_pure_dict(parameters))
    assert all(isinstance(leaf, jax.Array) and np.any(leaf) for leaf in jax.tree.leaves(gradient))

    inside = nn.Dense(D).apply({"params": variables["params"]["Dense_0"]}, x)
    alone, _ = jax.jit(nnx.merge(graphdef, variables["params"]["mixer"]).__call__)(inside)
    assert_close(nn.Dense(3).apply({"params": variables["params"]["Dense_1"]}, inside + alone), y, what=spec)


def test_a_linen_model_with_our_layer_trains():
    """Say at the end which token was marked at the start: only memory can."""
    net = Net("gla(heads=2)")
    tokens = jax.random.randint(jax.random.key(1), (64, T), 0, 3)
    x = jax.nn.one_hot(tokens, D).at[:, 0, -1].set(1.0)
    variables, tx = jax.jit(net.init)(jax.random.key(0), x), optax.adam(1e-2)

    def loss(variables):
        logits, _ = net.apply(variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, -1], tokens[:, 0]).mean()

    @jax.jit
    def step(variables, opt_state):
        value, gradient = jax.value_and_grad(loss)(variables)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(variables, updates), opt_state, value

    opt_state = tx.init(variables)
    for _ in range(50):
        variables, opt_state, value = step(variables, opt_state)
    assert value < 0.1 < np.log(3) / 2


def test_classes_have_namesakes_with_their_own_settings():
    layer = seqzoo.linen.GatedLinearAttention(D, heads=2)
    variables = layer.init(jax.random.key(0), data())
    assert layer.apply(variables, data())[0].shape == (B, T, D)
    assert set(dir(seqzoo.linen)) >= {mixers.registry.get(name).__name__ for name in mixers.names()}
    with pytest.raises(AttributeError, match="no 'Gla'"):
        seqzoo.linen.Gla  # noqa: B018
