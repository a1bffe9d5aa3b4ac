"""Varying mesh axes ("vma") of values inside `shard_map`: the axes over which devices may hold different numbers.

JAX makes them a part of a value's type. The carry of a loop and both sides of a custom gradient must have equal types going in and
coming out. Outside `shard_map` these functions change nothing.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def varying_axes(*trees: Any) -> frozenset[str]:
    """Mesh axes over which any of the arrays may differ."""
    return frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in jax.tree.leaves(trees)))


def match_vma(tree: Any, over: Collection[str] = ()) -> Any:
    """Casts all arrays to vary over every axis that one of them varies over, and over the axes given."""
    union = varying_axes(tree) | frozenset(over)

    def cast(leaf):
        missing = tuple(sorted(union - varying_axes(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def zeros_like_vma(like: Array, shape: Sequence[int] | None = None, dtype: Any = None) -> Array:
    """Zeros of like's shape and dtype (or those given) that vary over the same axes: the initial carry of a loop."""
    return match_vma(jnp.zeros_like(like, shape=shape, dtype=dtype), over=varying_axes(like))
