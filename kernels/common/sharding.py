"""Sharding of an op over the ambient mesh: batch rows over (replica, fsdp), heads or channels over tensor, time over seq.

`plan` decides which mesh axes are used; `run_sharded` runs a function once per shard under `jax.shard_map`. A mesh axis that does
not divide its dimension stays unused: its devices repeat the work, and `explain` reports it.

Time is cut into as many shards as seq has devices, in order (context parallelism). The effect of a shard on a recurrent state is a
small *transition* (a decay and a state), and transitions compose: `prefix_over_shards` gathers those of all shards and gives each
shard its true initial state. States move between devices then, sequences do not.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

from seqzoo.kernels.common import implementations
from seqzoo.kernels.common.vma import match_vma, varying_axes

BATCH, HEADS, TIME = ("replica", "fsdp"), ("tensor",), ("seq",)
AXES = (*BATCH, *TIME, *HEADS)


class OpSharding(NamedTuple):
    """Mesh axes that shard an op's batch rows (b), heads or channels (h) and time (t); () for none."""

    b: tuple[str, ...] = ()
    h: tuple[str, ...] = ()
    t: tuple[str, ...] = ()
    free: frozenset[str] = frozenset()  # mesh axes that no enclosing shard_map holds, used or not
    time_shards: int = 1

    @property
    def manual(self) -> frozenset[str]:
        """Mesh axes that the op takes over: all free ones, or none if it uses none and stays plain local code."""
        return self.free if self.b or self.h or self.t else frozenset()

    @property
    def time(self) -> str | None:
        """The mesh axis that shards time, or None."""
        return self.t[0] if self.t else None

    def spec(self, letters: str, shape: Sequence[int] | None = None) -> jax.P:
        """PartitionSpec of an array with axes "b t h .": b, t, h are sharded as above, other letters and axes of size 1 are not."""
        named = letters.split()
        sizes = [None] * len(named) if shape is None else shape
        axes = {"b": self.b, "t": self.t, "h": self.h}
        return jax.P(*(None if size == 1 else axes.get(letter) or None for letter, size in zip(named, sizes, strict=True)))


def plan(op: str, *, b: int = 1, t: int = 1, h: Sequence[int] = ()) -> OpSharding:
    """Decides how the ambient mesh (`jax.set_mesh`) shards an op.

    Args:
      op: its name, for `explain` and errors.
      b, t: numbers of batch rows and tokens.
      h: numbers of heads or channels that are sharded together; a count of 1 is shared by all shards.
    Returns:
      The sharding; an empty one without a mesh, and inside a caller's own `shard_map` that holds the axes already.
    Raises:
      ValueError: one of the axes is of type Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = {} if mesh.empty else dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for axis in AXES:
        if types.get(axis) == AxisType.Explicit:
            raise ValueError(
                f"{op}: mesh axis {axis!r} has type Explicit, wanted Auto: make the mesh with "
                f"axis_types=(jax.sharding.AxisType.Auto,) * {len(types)}"
            )
    free = {axis: mesh.shape[axis] for axis in AXES if types.get(axis) == AxisType.Auto}
    decisions = []

    def shard(dimension, axes, counts):
        used, ways = [], 1
        for axis in axes:
            size = free.get(axis, 1)
            if size > 1 and counts and all(count and count % (ways * size) == 0 for count in counts):
                used, ways = [*used, axis], ways * size
                decisions.append(f"{dimension} over {axis}={size}")
            elif size > 1:
                decisions.append(f"{axis}={size} unused ({dimension}: {', '.join(map(str, counts)) or 'none'})")
        return tuple(used)

    rows = shard("rows", BATCH, [b])
    heads = shard("heads", HEADS, [count for count in h if count > 1])
    time = shard("time", TIME, [t])
    implementations.record(op, *(decisions or ["not sharded"]))
    return OpSharding(rows, heads, time, frozenset(free), free[time[0]] if time else 1)


def run_sharded(sharding: OpSharding, function: Callable, arrays: Sequence[Any], axes: Sequence[Any], out: Any) -> Any:
    """Runs function(*arrays) on every shard.

    Args:
      sharding: from `plan`; an empty one calls `function` directly.
      function: from shards of the arrays to shards of the results.
      arrays: arrays, None, or small trees of arrays with equal axes; floats and integers.
      axes: the axis letters of each, see `OpSharding.spec`; a tuple of them for a tuple of arrays with different axes.
      out: the same for the results, a string or a tuple of strings. If any input is a float, all results must be floats.
    """
    if not sharding.manual:
        return function(*arrays)
    leaves, treedef = jax.tree.flatten(tuple(arrays))
    letters = [named for x, named in zip(arrays, axes, strict=True) for named in _per_leaf(named, x)]
    specs = tuple(sharding.spec(named, leaf.shape) for leaf, named in zip(leaves, letters, strict=True))
    floats = tuple(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    flat = lambda *leaves: function(*jax.tree.unflatten(treedef, leaves))
    job = _Job(flat, sharding.manual, specs, jax.tree.map(sharding.spec, out), floats)
    return (_run if floats else _Job.whole)(job, *match_vma(leaves))


def _per_leaf(named, tree) -> list[str]:
    if isinstance(named, str) or tree is None:
        return [named] * len(jax.tree.leaves(tree))
    return [letters for part, inner in zip(named, tree, strict=True) for letters in _per_leaf(part, inner)]


class _Job(NamedTuple):
    function: Callable  # of the flattened shards
    manual: frozenset[str]
    specs: tuple[jax.P, ...]  # of the arguments
    outs: Any
    floats: tuple[int, ...]  # indices of the arguments that have gradients

    def shard_map(self, function, specs, outs):
        return jax.shard_map(function, in_specs=specs, out_specs=outs, axis_names=self.manual)

    def whole(self, *leaves):
        return self.shard_map(self.function, self.specs, self.outs)(*leaves)


class _Saved(NamedTuple):
    """Residuals of the shards' pullbacks, by the mesh axes over which they differ, with a new first axis for the devices."""

    groups: dict[str, list[Array]]
    order: Any  # static: the pullback's treedef, and the (group, index) of each of its leaves


jax.tree_util.register_pytree_node(
    _Saved, lambda saved: ((saved.groups,), saved.order), lambda order, children: _Saved(*children, order)
)


# The gradient is a `shard_map` of its own around the pullback of one shard. JAX would derive much the same, but shards the
# residuals over every axis of the mesh, those included that a caller's `shard_map` holds, and then cannot lower it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(job: _Job, *leaves: Array):
    return job.whole(*leaves)


def _run_forward(job, *leaves):
    order = []

    def shard(*leaves):
        def of_floats(*floats):
            arguments = list(leaves)
            for i, x in zip(job.floats, floats, strict=True):
                arguments[i] = x
            return job.function(*arguments)

        out, pull = jax.vjp(of_floats, *(leaves[i] for i in job.floats))
        saved, treedef = jax.tree.flatten(pull)
        groups = {name: [] for name in by_axes}
        places = []
        for x in saved:
            name = ",".join(sorted(varying_axes(x) & job.manual))
            places.append((name, len(groups[name])))
            groups[name].append(x[None])
        order[:] = treedef, tuple(places)
        return out, groups

    by_axes = _subsets(job.manual)
    out, groups = job.shard_map(shard, job.specs, (job.outs, by_axes))(*leaves)
    return out, _Saved(groups, tuple(order))


def _run_backward(job, saved, cotangents):
    treedef, places = saved.order

    def shard(groups, cotangents):
        pull = jax.tree.unflatten(treedef, [groups[name][i][0] for name, i in places])
        return pull(cotangents)

    outs = tuple(job.specs[i] for i in job.floats)
    gradients = job.shard_map(shard, (_subsets(job.manual), job.outs), outs)(saved.groups, cotangents)
    of_arguments: list[Array | None] = [None] * len(job.specs)
    for i, gradient in zip(job.floats, match_vma((gradients, saved.groups))[0], strict=True):
        of_arguments[i] = gradient
    return tuple(of_arguments)


_run.defvjp(_run_forward, _run_backward)


def _subsets(axes: frozenset[str]) -> dict[str, jax.P]:
    chosen = itertools.chain.from_iterable(itertools.combinations(sorted(axes), n) for n in range(len(axes) + 1))
    return {",".join(names): jax.P(names) for names in chosen}


def prefix_over_shards(compose: Callable, transition: Any, start: Any, axis: str, reverse: bool = False) -> Any:
    """Exclusive prefix over the shards of `axis`, called on every shard: `start` after the transitions of all earlier shards.

    Args:
      compose: (state, transition) -> the state after it.
      transition: this shard's, a tree of arrays.
      start: the state before the first shard.
      reverse: from the last shard to the first.
    Returns:
      The state before this shard (reverse: after it), varying over `axis`. One all-gather of the transitions.
    """
    start, transition = match_vma((start, transition), over=(axis,))
    transitions = jax.tree.map(lambda x: lax.all_gather(x, axis), transition)
    here, count = lax.axis_index(axis), lax.axis_size(axis)

    def one(i, state):
        i = count - 1 - i if reverse else i
        after = compose(state, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), transitions))
        return jax.tree.map(lambda new, old: jnp.where(i > here if reverse else i < here, new, old), after, state)

    return lax.fori_loop(0, count, one, start)


def mask_to_shard(shard: int, x: Any, axis: str | None) -> Any:
    """x on one shard (-1: the last), zeros on the others; without an axis x itself."""
    if axis is None:
        return x
    chosen = lax.axis_index(axis) == shard % lax.axis_size(axis)
    return jax.tree.map(lambda leaf: jnp.where(chosen, leaf, jnp.zeros_like(leaf)), x)


def broadcast_from_shard(shard: int, x: Any, axis: str | None) -> Any:
    """One shard's x (-1: the last) on all shards; without an axis x itself."""
    return x if axis is None else jax.tree.map(lambda leaf: lax.psum(leaf, axis), mask_to_shard(shard, x, axis))


def axis_tuple(axis: str | None) -> tuple[str, ...]:
    """The axis as a tuple, () for None."""
    return () if axis is None else (axis,)
