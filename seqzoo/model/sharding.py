"""Sharding of a model over the mesh: parameter axes by one table, batch rows over (replica, fsdp), time over seq."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.sharding import AxisType, NamedSharding

from seqzoo.kernels.common import sharding as kernel_sharding
from seqzoo.model import params

AXES = kernel_sharding.AXES
BATCH_AXES = kernel_sharding.BATCH

# The axes that parameters name in `nnx.Param(value, axes=(...))`, and the mesh axis over which each is split. "layers" are the
# leading axes of stacked layers.
RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "state": None,
    "conv_kernel": None,
    "layers": None,
}


class ShardingError(ValueError):
    """A size that does not fit the mesh. The message names the array, its axis and both sizes."""


def make_mesh(sizes: Mapping[str, int], rules: Mapping[str, str | None]) -> jax.sharding.Mesh:
    """The mesh (replica, fsdp, seq, tensor), all axes Auto; one size may be -1: all remaining devices.

    If the sizes multiply to fewer devices than exist, the first ones are used.

    Raises:
      ShardingError: the sizes do not fit the number of devices, or an axis larger than 1 would only repeat work, because no
        parameters are split over it.
    """
    count = jax.device_count()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 not in sizes.values():
        if fixed > count:
            raise ShardingError(
                f"mesh {dict(sizes)} needs {fixed} devices, there are {count}; wanted sizes that multiply to at most {count}"
            )
        count = fixed
    elif count % fixed:
        raise ShardingError(f"mesh {dict(sizes)} does not fit {count} devices: {fixed} does not divide {count}")
    shape = {axis: count // fixed if size == -1 else size for axis, size in sizes.items()}
    for axis, size in shape.items():
        if size > 1 and axis in kernel_sharding.HEADS and axis not in rules.values():
            raise ShardingError(
                f"mesh.{axis}={size}: nothing is split over it, so its devices would repeat the same work; "
                f"wanted mesh.{axis}=1, or a parameter axis on {axis!r} in mesh.rules"
            )
    devices = jax.devices()[:count]
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Sharding of every array [b, t] of a batch: rows over (replica, fsdp), tokens over seq."""
    return NamedSharding(mesh, jax.P(kernel_sharding.BATCH, kernel_sharding.TIME))


def check_batch(mesh: jax.sharding.Mesh, batch: int, length: int, owner: str) -> None:
    """Raises ShardingError unless the rows divide evenly over (replica, fsdp) and the tokens over seq.

    owner: the array's owner, named in the message.
    """
    for size, axes, unit in ((batch, kernel_sharding.BATCH, "rows"), (length, kernel_sharding.TIME, "tokens")):
        devices = math.prod(mesh.shape[axis] for axis in axes)
        if size % devices:
            named = " * ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise ShardingError(f"{owner}: {size} {unit} do not divide over {named}, {devices} devices")


def constrain(x: Array, axes: str) -> Array:
    """x with its axes sharded as the ambient mesh shards those of ops; without a mesh, x itself.

    axes: a letter per axis, such as "b t .": b rows, t time, h heads or channels, "." not sharded (see `OpSharding.spec`).
    """
    sizes = {"b": 1, "t": 1, "h": 1} | dict(zip(axes.split(), x.shape, strict=True))
    shards = kernel_sharding.plan("array", b=sizes["b"], t=sizes["t"], h=[sizes["h"]])
    return jax.lax.with_sharding_constraint(x, shards.spec(axes)) if shards.free else x


def param_shardings(mesh: jax.sharding.Mesh, state: nnx.State, rules: Mapping[str, str | None]) -> dict[str, Any]:
    """NamedShardings of all parameters, as a plain nested dict of the same structure.

    Args:
      mesh: the mesh.
      state: the model's parameters, values or abstract, with their metadata.
      rules: parameter axis -> mesh axis or None.
    Raises:
      ShardingError: a parameter names an axis without a rule, two of its axes lie on one mesh axis, or a size does not divide.
    """

    def sharding(path: str, variable: nnx.Variable) -> NamedSharding:
        names = params.axes(path, variable)
        for name in names:
            if name is not None and name not in rules:
                raise ShardingError(f"parameter {path}: no rule for its axis {name!r}; rules exist for {', '.join(rules)}")
        spec = [None if name is None else rules[name] for name in names]
        for name, axis, size in zip(names, spec, variable.shape, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                hint = f"; wanted model.pad_vocab={mesh.shape[axis]}, or a multiple of it" if name == "vocab" else ""
                raise ShardingError(
                    f"parameter {path}: its axis {name!r} of size {size} does not divide over mesh.{axis}={mesh.shape[axis]}{hint}"
                )
            if axis is not None and spec.count(axis) > 1:
                raise ShardingError(f"parameter {path}: mesh.rules put two of its axes {names} on {axis!r}")
        return NamedSharding(mesh, jax.P(*spec))

    return params.map_variables(sharding, state)
