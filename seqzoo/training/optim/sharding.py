"""Sharding of the optimizer's state: like the parameters."""

import math
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding


def optimizer_state_shardings(tx: optax.GradientTransformation, opt_state: Any, parameters: dict, by_parameter: dict) -> Any:
    """A tree of NamedShardings like the optimizer's state.

    A moment has the sharding of its parameter. One that lacks an axis of its parameter, such as Adafactor's means over rows and
    columns, is sharded along the remaining axes (if several axes have the length of the missing one: so that a device holds least).
    All else, counts and keys, is on every device.

    Args:
      tx: the optimizer.
      opt_state: its state, abstract.
      parameters: what it was made for, abstract.
      by_parameter: tree like `parameters` of NamedShardings with an entry for every axis.
    """
    replicated = NamedSharding(jax.tree.leaves(by_parameter)[0].mesh, jax.P())
    is_masked = lambda node: isinstance(node, optax.MaskedNode)

    def place(moment, parameter, where):
        if is_masked(moment):  # this part of the optimizer does not act on the parameter
            return moment
        if moment.shape == parameter.shape:
            return where
        specs = [
            jax.P(*where.spec[:axis], *where.spec[axis + 1 :])
            for axis in range(parameter.ndim)
            if moment.shape == parameter.shape[:axis] + parameter.shape[axis + 1 :]
        ]
        left = [NamedSharding(where.mesh, spec) for spec in specs]
        return min(left, key=lambda sharding: math.prod(sharding.shard_shape(moment.shape)), default=replicated)

    # Without this, jit(tx.init) leaves a full copy of the moments on every device.
    return optax.tree.map_params(
        tx, place, opt_state, parameters, by_parameter, transform_non_params=lambda _: replicated, is_leaf=is_masked
    )
