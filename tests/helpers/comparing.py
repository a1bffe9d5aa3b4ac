"""One function on both sides: outputs, final state, and the gradients of a fixed projection of both to every input.

Arrays are dicts of NumPy arrays by name; both sides take them as keyword arguments and return (output, final states...), with
None for a state that there is not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from helpers.tolerances import assert_close, rms


def _weights(outputs):
    """The cotangents: drawn by position, so that both sides get the same."""
    random = np.random.default_rng(7)
    return [random.normal(size=tuple(o.shape)).astype(np.float32) for o in outputs]


def _named(outputs, gradients):
    values = dict(zip(("output", "last", "second last"), outputs, strict=False))
    return {**values, **{f"d_{name}": x for name, x in gradients.items()}}


@functools.cache
def _compiled(function):
    def loss(arrays):
        outputs = [x for x in function(**arrays) if x is not None]
        return sum(jnp.sum(x * w) for x, w in zip(outputs, _weights(outputs), strict=True)), outputs

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def ours(function, arrays):
    """{"output", "last", "second last", "d_<input>"...} of a JAX function, as far as there are."""
    (_, outputs), gradients = _compiled(function)(arrays)
    return _named(outputs, gradients)


def theirs(torch, function, arrays):
    """The same of a PyTorch function."""
    tensors = {name: torch.from_numpy(x.copy()).requires_grad_() for name, x in arrays.items()}
    outputs = [x for x in function(**tensors) if x is not None]
    loss = sum((x * torch.from_numpy(w)).sum() for x, w in zip(outputs, _weights(outputs), strict=True))
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    wide = lambda x: x.detach().double().numpy()
    return _named([wide(x) for x in outputs], {name: wide(x) for name, x in zip(tensors, gradients, strict=True)})


def assert_equal(got, wanted, *, mild=None, what=""):
    """Every entry within the float32 bar; `mild` (the same for mild gates) gives the scale where violent gates leave little."""
    assert set(got) == set(wanted)
    for name in wanted:
        assert_close(got[name], wanted[name], scale=0.0 if mild is None else rms(mild[name]), what=f"{what} {name}")
