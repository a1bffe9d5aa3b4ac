"""Workarounds for XLA's CPU compiler. On other devices each function is the plain operation that its docstring names.

`python -m benchmarks.xla_cpu` times ops with each of them and with the plain operation (benchmarks/results/xla_cpu_jax-*.json). One
that pays with no supported version of JAX is to be deleted.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType

from seqzoo.kernels.common import implementations
from seqzoo.kernels.common.vma import match_vma


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


def product(spec: str, x: Array, y: Array, precision: lax.Precision | None = None) -> Array:
    """`jnp.einsum(spec, x, y)` in x's dtype, for reverse-mode differentiation; every index is in two of the three, "..." in x.

    JAX's own gradient of x y to y is (dy^T x)^T; here it is x^T dy, where a small dy is transposed and stored first. That pays
    with decays per channel, whose chunks are trees of small blocks (JAX 0.10.2).
    """
    return _product(spec, *match_vma((x, y)), precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(spec, x, y, precision):
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=x.dtype)


def _forward(spec, x, y, precision):
    return _product(spec, x, y, precision), (x, y)


def _backward(spec, precision, arguments, d):
    (of_x, of_y), (_, _, of_d) = spec.partition("->")[0].split(","), spec.partition("->")
    x, y = arguments
    d_x = _product(f"{of_d},{of_y}->{of_x}", d, y, precision)
    if of_d[-2:].isalpha() and implementations.on_cpu() and max(d.shape[-2:]) <= 16:
        # XLA would fold the transposition into the product, and calls a library for each small product of columns by columns.
        d, of_d = lax.optimization_barrier(jnp.swapaxes(d, -1, -2)), of_d[:-2] + of_d[:-3:-1]
    return d_x, _product(f"{of_x},{of_d}->{of_y}", x, d, precision)


_product.defvjp(_forward, _backward)


def sum_keepdims(x: Array, axis: int) -> Array:
    """`jnp.sum(x, axis, keepdims=True)` over one of the last two axes.

    XLA:CPU adds one number at a time where it sums over the last axis, or over few rows inside a fusion; a product with ones is
    vectorised.
    """
    if not implementations.on_cpu():
        return jnp.sum(x, axis=axis, keepdims=True)
    spec = {-1: "...wr,ri->...wi", -2: "...rw,ri->...iw"}[axis]
    return jnp.einsum(spec, x, jnp.ones((x.shape[axis], 1), x.dtype), precision=lax.Precision.HIGHEST)


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
    return product("nm,mx->nx", ones, x.reshape(len(x), -1), lax.Precision.HIGHEST).reshape(x.shape)


def scan(step: Callable, start: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` over a few large elements, unrolled: on CPUs a loop spends a part of each step on slices and updates."""
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


def broadcast(x: Array, shape: Sequence[int]) -> Array:
    """`jnp.broadcast_to(x, shape)` along the last two axes, with the sums of the gradient as in `sum_keepdims`."""
    for axis in (-2, -1):
        if x.shape[axis] == 1 < shape[axis]:
            x = (_repeat if implementations.on_cpu() else _plain_repeat)(x, axis, shape[axis])
    return x


def _plain_repeat(x, axis, size):
    return jnp.broadcast_to(x, (*x.shape[:-2], size, x.shape[-1]) if axis == -2 else (*x.shape[:-1], size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _repeat(x, axis, size):
    return _plain_repeat(x, axis, size)


def _repeat_forward(x, axis, size):
    return _repeat(x, axis, size), None


def _repeat_backward(axis, size, _, d):
    if axis == -2 and size <= 16:  # few rows: additions, stored, or each reader does them again
        return (materialise(functools.reduce(jnp.add, (d[..., i : i + 1, :] for i in range(size)))),)
    return (sum_keepdims(d, axis),)


_repeat.defvjp(_repeat_forward, _repeat_backward)
