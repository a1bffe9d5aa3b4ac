"""The mixers as Linen modules, for projects whose modules are Linen's. The numbers and the states are those of `seqzoo.mixers`.

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, state=None):
            y, state = seqzoo.linen.GatedLinearAttention(64, heads=2, name="mixer")(x, state=state)
            return nn.Dense(10)(x + y), state

Every class of `seqzoo.mixers` has a class of the same name here; `create` builds one from a spec string. Parameters are plain
arrays under the names that the NNX module gives them ("params" / "mixer" / "q" / "w"), so weights move between the two as they are.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen, nnx

from seqzoo import mixers
from seqzoo.mixers.base import State


def create(spec: str, d_model: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, name: str | None = None) -> linen.Module:
    """The Linen module of the mixer that a spec string names; arguments as in `seqzoo.mixers.create`, `name` as in Linen."""
    checked = mixers.registry.check(spec)
    settings = dict(checked.settings) | {"dtype": dtype, "param_dtype": param_dtype}
    return _module(mixers.registry.get(checked.name), d_model, name=name, **settings)


def init_state(spec: str, d_model: int, batch: int, max_length: int | None = None, dtype: Any = None) -> State:
    """The empty state of a mixer, to be given to the module as `state=`; it depends on the settings alone, not on parameters."""
    return nnx.eval_shape(lambda: mixers.create(spec, d_model, rngs=nnx.Rngs(0))).init_state(batch, max_length, dtype)


def _module(mixer: type[mixers.Mixer], *args: Any, name: str | None = None, **settings: Any) -> linen.Module:
    return nnx.bridge.to_linen(mixer, *args, metadata_fn=None, name=name, **settings)


def _classes() -> dict[str, type[mixers.Mixer]]:
    """The registered classes by name, those of other projects that were imported by now included."""
    return {mixer.__name__: mixer for mixer in map(mixers.registry.get, reversed(mixers.names()))}


def __getattr__(name: str):
    classes = _classes()
    if name not in classes:
        raise AttributeError(f"seqzoo.linen has no {name!r}; mixers are {', '.join(sorted(classes))}")
    return functools.partial(_module, classes[name])


def __dir__() -> list[str]:
    return [*_classes(), "create", "init_state"]
