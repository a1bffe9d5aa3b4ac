"""Workarounds for XLA's CPU compiler. On other devices each function is the plain operation that its docstring names.

`python -m benchmarks.xla_cpu` times ops with each of them and with the plain operation (benchmarks/results/xla_cpu_jax-*.json). One
that pays with no supported version of JAX is to be deleted.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType

from seqzoo.kernels.common import implementations


def matmul(x: Array, w: Array) -> Array:
    """`x @ w` for x [..., i] and w [i, j].

    The gradient to w sums over all leading axes of x. XLA:CPU is slow where those are several; here they are one. On a mesh they
    stay apart, since a joint axis cannot be sharded as two were.
    """
    if not implementations.on_cpu() or _on_mesh():
        return x @ w
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def _on_mesh() -> bool:
    """True if the ambient mesh has several devices that no enclosing `shard_map` has taken over."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(size > 1 for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind != AxisType.Manual)


def sum_columns(x: Array) -> Array:
    """`jnp.sum(x, axis=-1, keepdims=True)`.

    XLA:CPU adds one number at a time over the last axis; a product with ones is vectorised.
    """
    if not implementations.on_cpu():
        return jnp.sum(x, axis=-1, keepdims=True)
    return jnp.einsum("...wr,ri->...wi", x, jnp.ones((x.shape[-1], 1), x.dtype), precision=lax.Precision.HIGHEST)


def sum_in_loop(x: Array, ones: Array) -> Array:
    """`jnp.sum(x, axis=1)` of x [b, n, d], in the body of a loop over tokens; `ones` [b, n] is made outside of the loop.

    XLA:CPU gives a sum in a loop to its thread pool at every token. A matrix-vector product with batch b alone, even where the
    vector is all ones, stays vectorised inside the loop.
    """
    if not implementations.on_cpu():
        return jnp.sum(x, axis=1)
    return jnp.einsum("bnd,bn->bd", x, ones, precision=lax.Precision.HIGHEST)


def cumsum(x: Array) -> Array:
    """`jnp.cumsum(x, axis=0)` of a few large terms: a product with a triangle of ones, for the states of the chunks of a block."""
    if not implementations.on_cpu():
        return jnp.cumsum(x, axis=0)
    ones = jnp.asarray(np.tri(len(x)), x.dtype)
    return jnp.einsum("nm,mx->nx", ones, x.reshape(len(x), -1), precision=lax.Precision.HIGHEST).reshape(x.shape)


def scan(step: Callable, start: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` over a few large elements, unrolled. It pays with JAX 0.11, and costs about as much with JAX 0.10."""
    return lax.scan(step, start, xs, reverse=reverse, unroll=implementations.on_cpu() or 1)


def order_after(x: Array, o: Array) -> Array:
    """`lax.optimization_barrier((x, o))[0]` for integers x >= 0 [b or 1, t] and floats o [b, t]: x, available once o is computed.

    Attention writes its cache at slots made from such an x, and o reads the old cache. Only in that order does a loop update one
    cache in place; otherwise XLA copies it, to read the old one while it makes the new. XLA:CPU drops the barrier before it decides
    on copies, so there the dependency is made by arithmetic: the maximum of x and a negative number from the bits of o.
    """
    o = lax.stop_gradient(o)
    if not implementations.on_cpu():
        return lax.optimization_barrier((x, o))[0]
    bits = lax.bitcast_convert_type(o.astype(jnp.float32), jnp.int32)
    return jnp.maximum(x, -1 - lax.shift_right_logical(bits, jnp.int32(1)))  # below 0 for any o, NaN included


def materialise(tree: Any) -> Any:
    """The arrays themselves, computed once and stored. XLA:CPU fuses a cheap producer into each of its readers otherwise."""
    return lax.optimization_barrier(tree) if implementations.on_cpu() else tree


def broadcast_rows(x: Array, rows: int) -> Array:
    """`jnp.broadcast_to(x, (..., rows, d))` of x [..., 1, d]; the gradient of few rows is their sum by additions, stored."""
    return _repeat(x, rows) if implementations.on_cpu() and rows <= 16 else _plain_repeat(x, rows)


def _plain_repeat(x, rows):
    return jnp.broadcast_to(x, (*x.shape[:-2], rows, x.shape[-1]))


_repeat = jax.custom_vjp(_plain_repeat, nondiff_argnums=(1,))
_repeat.defvjp(
    lambda x, rows: (_repeat(x, rows), None),
    lambda rows, _, d: (materialise(functools.reduce(jnp.add, (d[..., i : i + 1, :] for i in range(rows)))),),
)
