"""Metadata of parameters: `nnx.Param(value, axes=("embed", "heads"), decay=False)`.

`axes` names each axis of the parameter as its layer made it; the leading axes that a stack of layers adds are "layers".
`decay=False` exempts it from weight decay.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, parameters with their metadata); `nnx.merge(graphdef, nnx.to_pure_dict(parameters))` is the model again.

    Raises TypeError if the model holds arrays that are not parameters: training would neither change nor save them.
    """
    graphdef, state = nnx.split(model)
    for path, variable in _variables(state):
        if not isinstance(variable, nnx.Param):
            raise TypeError(f"{path} is a {type(variable).__name__}, wanted an nnx.Param: constants belong into the code")
    return graphdef, state


def axes(path: str, variable: nnx.Variable) -> tuple[str | None, ...]:
    """The names of all axes of a parameter, those of stacked layers included."""
    named = variable.get_metadata().get("axes")
    if named is None or len(named) > len(variable.shape):
        raise ValueError(f"parameter {path} of shape {variable.shape} has axes={named!r}; wanted a name or None per axis")
    return ("layers",) * (len(variable.shape) - len(named)) + tuple(named)


def own_axes(path: str, variable: nnx.Variable) -> tuple[str | None, ...]:
    """The names of the axes that a parameter has in its own layer."""
    return tuple(name for name in axes(path, variable) if name != "layers")


def decay_mask(state: nnx.State) -> dict[str, Any]:
    """True for parameters under weight decay: those with two or more axes in their own layer, unless marked decay=False."""

    def decays(path: str, variable: nnx.Variable) -> bool:
        return len(own_axes(path, variable)) >= 2 and variable.get_metadata().get("decay", True)

    return map_variables(decays, state)


def matrices(state: nnx.State) -> dict[str, Any]:
    """True for matrices W [..., in, out] that map a block's channels to others by x W, one per head where there are leading axes.

    These are the parameters with two or more axes in their own layer, unless marked decay=False; not embeddings, positions and the
    head, which are outside the stack of blocks; not the kernels of convolutions nor the coefficients of recurrences, which are per
    channel.
    """

    def is_matrix(path: str, variable: nnx.Variable) -> bool:
        own = own_axes(path, variable)
        marked = not variable.get_metadata().get("decay", True)
        return path.startswith("stack/") and len(own) >= 2 and not marked and not {"conv_kernel", "state"} & set(own)

    return map_variables(is_matrix, state)


def count(state: nnx.State) -> int:
    """The number of parameters: elements of all arrays."""
    return sum(math.prod(variable.shape) for _, variable in _variables(state))


def map_variables(f: Callable[[str, nnx.Variable], Any], state: nnx.State) -> dict[str, Any]:
    """A plain nested dict of f(path, variable), with paths such as "stack/scanned/0_gla/mixer/q/w"."""

    def mapped(path, variable):
        return variable.replace(f(_name(path), variable))

    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(mapped, state, is_leaf=_is_variable))


def _variables(state: nnx.State) -> list[tuple[str, nnx.Variable]]:
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_variable)
    return [(_name(path), variable) for path, variable in leaves]


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _name(path) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
