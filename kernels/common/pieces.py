"""Running an op piece by piece where a layout puts it, and joining the pieces of time.

Time is cut into as many pieces as seq has devices, in order. What a recurrence does to its state over a whole piece is a small
*summary* (a decay and a state), and summaries compose: `fold` gathers those of all pieces and gives each piece its true initial
state. States move between devices then, sequences do not.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.placement import Layout
from seqzoo.kernels.common.varying import align, varying


def run(layout: Layout, piece: Callable, arrays: Sequence[Any], axes: Sequence[str], out: Any) -> Any:
    """piece(*arrays), laid out.

    Args:
      layout: from `placement.plan`; an empty one calls `piece` as it is.
      arrays: arrays, None, or small trees of arrays that are cut alike; floats and integers.
      axes: the letters of each one's axes, see `Layout.spec`; a tuple of such for a tuple that is not cut alike.
      out: the same for what `piece` returns, a string or a tuple of strings. If any input is a float, all of it must be.
    """
    if not layout.manual:
        return piece(*arrays)
    leaves, treedef = jax.tree.flatten(tuple(arrays))
    letters = [named for x, named in zip(arrays, axes, strict=True) for named in _per_leaf(named, x)]
    specs = tuple(layout.spec(named, leaf.shape) for leaf, named in zip(leaves, letters, strict=True))
    floats = tuple(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact))
    flat = lambda *leaves: piece(*jax.tree.unflatten(treedef, leaves))
    job = _Job(flat, layout.manual, specs, jax.tree.map(layout.spec, out), floats)
    return (_run if floats else _Job.whole)(job, *align(leaves))


def _per_leaf(named, tree) -> list[str]:
    if isinstance(named, str) or tree is None:
        return [named] * len(jax.tree.leaves(tree))
    return [letters for part, inner in zip(named, tree, strict=True) for letters in _per_leaf(part, inner)]


class _Job(NamedTuple):
    piece: Callable
    manual: frozenset[str]
    specs: tuple[jax.P, ...]  # of the arguments
    outs: Any
    floats: tuple[int, ...]  # which arguments have gradients

    def shard(self, function, specs, outs):
        return jax.shard_map(function, in_specs=specs, out_specs=outs, axis_names=self.manual)

    def whole(self, *leaves):
        return self.shard(self.piece, self.specs, self.outs)(*leaves)


class _Saved(NamedTuple):
    """What the pieces' pullbacks hold: by the mesh axes over which it differs, each device's along a new first axis."""

    groups: dict[str, list[Array]]
    order: Any  # static: the pullback's treedef, and where each of its leaves went


jax.tree_util.register_pytree_node(
    _Saved, lambda saved: ((saved.groups,), saved.order), lambda order, children: _Saved(*children, order)
)


# The gradient is a `shard_map` of its own around the piece's pullback. JAX would derive much the same, but lays what the forward
# pass saves over every axis of the mesh, those included that a caller's `shard_map` holds, and then cannot lower it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(job: _Job, *leaves: Array):
    return job.whole(*leaves)


def _run_forward(job, *leaves):
    order = []

    def piece(*leaves):
        def of_floats(*floats):
            everything = list(leaves)
            for i, x in zip(job.floats, floats, strict=True):
                everything[i] = x
            return job.piece(*everything)

        out, pull = jax.vjp(of_floats, *(leaves[i] for i in job.floats))
        saved, treedef = jax.tree.flatten(pull)
        groups = {name: [] for name in by_axes}
        places = []
        for x in saved:
            name = ",".join(sorted(varying(x) & job.manual))
            places.append((name, len(groups[name])))
            groups[name].append(x[None])
        order[:] = treedef, tuple(places)
        return out, groups

    by_axes = _subsets(job.manual)
    out, groups = job.shard(piece, job.specs, (job.outs, by_axes))(*leaves)
    return out, _Saved(groups, tuple(order))


def _run_backward(job, saved, cotangents):
    treedef, places = saved.order

    def piece(groups, cotangents):
        pull = jax.tree.unflatten(treedef, [groups[name][i][0] for name, i in places])
        return pull(cotangents)

    outs = tuple(job.specs[i] for i in job.floats)
    gradients = job.shard(piece, (_subsets(job.manual), job.outs), outs)(saved.groups, cotangents)
    every: list[Array | None] = [None] * len(job.specs)
    for i, gradient in zip(job.floats, align((gradients, saved.groups))[0], strict=True):
        every[i] = gradient
    return tuple(every)


_run.defvjp(_run_forward, _run_backward)


def _subsets(axes: frozenset[str]) -> dict[str, jax.P]:
    chosen = itertools.chain.from_iterable(itertools.combinations(sorted(axes), n) for n in range(len(axes) + 1))
    return {",".join(names): jax.P(names) for names in chosen}


def fold(step: Callable, summary: Any, start: Any, axis: str, reverse: bool = False) -> Any:
    """Inside a piece: `start` carried by step(state, summary) through all pieces before this one (reverse: behind it).

    One all-gather of the summaries. The result varies over `axis`.
    """
    start, summary = align((start, summary), over=(axis,))
    everyone = jax.tree.map(lambda x: lax.all_gather(x, axis), summary)
    here, count = lax.axis_index(axis), lax.axis_size(axis)

    def one(i, state):
        i = count - 1 - i if reverse else i
        after = step(state, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), everyone))
        return jax.tree.map(lambda new, old: jnp.where(i > here if reverse else i < here, new, old), after, state)

    return lax.fori_loop(0, count, one, start)


def only(piece: int, x: Any, axis: str | None) -> Any:
    """x on one piece (-1: the last), zeros on the others; without an axis x itself."""
    if axis is None:
        return x
    chosen = lax.axis_index(axis) == piece % lax.axis_size(axis)
    return jax.tree.map(lambda leaf: jnp.where(chosen, leaf, jnp.zeros_like(leaf)), x)


def of_piece(piece: int, x: Any, axis: str | None) -> Any:
    """What x is on one piece (-1: the last), given to all; without an axis x itself."""
    return x if axis is None else jax.tree.map(lambda leaf: lax.psum(leaf, axis), only(piece, x, axis))


def over(axis: str | None) -> tuple[str, ...]:
    """The axis as a tuple, () for None."""
    return () if axis is None else (axis,)
