"""JAX types a value inside `shard_map` by the mesh axes over which it may differ between devices.

The carry of a loop and the sides of a custom gradient must be typed alike, going in and coming out. Outside `shard_map` all of this
does nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def varying(*trees: Any) -> frozenset[str]:
    """The mesh axes over which any of the arrays may differ."""
    return frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in jax.tree.leaves(trees)))


def align(tree: Any, over: Sequence[str] = ()) -> Any:
    """The same arrays, all typed as varying over whatever one of them varies over, and over the axes given."""
    union = varying(tree) | frozenset(over)

    def cast(leaf):
        missing = tuple(sorted(union - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def zeros(like: Array, shape: Sequence[int] | None = None, dtype: Any = None) -> Array:
    """Zeros of like's shape and dtype, or of others, that vary over what it varies over: the start of a loop's carry."""
    return align(jnp.zeros_like(like, shape=shape, dtype=dtype), over=varying(like))
