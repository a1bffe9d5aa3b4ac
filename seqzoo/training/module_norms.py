"""Norms by module: the part of a model in which gradients or parameters grow."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def norms(tree: dict[str, Any]) -> dict[str, Any]:
    """Norms of every module of a tree like a LanguageModel's parameters, on the devices; float32 or better.

    Modules are those that the model names ("embedding", "norm", "head") and, in its stack, those that a block names ("mixer",
    "channel" and the norms before them). Scanned layers have one array with a number for each layer. Cost: one pass.
    """

    def stacked(pattern, axes):
        return {place: {name: _norm(part, axes) for name, part in block.items()} for place, block in pattern.items()}

    found: dict[str, Any] = {name: _norm(part) for name, part in tree.items() if name != "stack"}
    found["stack"] = {name: stacked(pattern, int(name == "scanned")) for name, pattern in tree["stack"].items()}
    return found


def _norm(tree: Any, axes: int = 0) -> Array:
    """Norm over all leaves, for every index of the first `axes` axes."""

    def square(leaf: Array) -> Array:
        leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return jnp.sum(leaf * leaf, range(axes, leaf.ndim))

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree))))


def by_layer(found: dict[str, Any]) -> dict[str, Any]:
    """The result of `norms`, on the host, as floats by layer: {"embedding": 1.0, "layers": {"0": {"mixer": 2.0, "channel": 3.0},
    ...}, ...}."""
    scanned, remainder = (found["stack"].get(name, {}) for name in ("scanned", "remainder"))
    place = lambda name: int(name.partition("_")[0])  # in the pattern of layers: blocks are called "0_gla", "1_softmax"
    layers = {}
    for name, parts in scanned.items():
        for part, numbers in parts.items():
            for index, number in enumerate(numbers):
                layers.setdefault(index * len(scanned) + place(name), {})[part] = float(number)
    first = len(layers)  # of the remainder
    for name, parts in remainder.items():
        layers[first + place(name)] = {part: float(number) for part, number in parts.items()}
    outside = {name: float(number) for name, number in found.items() if name != "stack"}
    return {**outside, "layers": {str(layer): layers[layer] for layer in sorted(layers)}}
