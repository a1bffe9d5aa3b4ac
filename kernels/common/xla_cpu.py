"""Products of matrices whose gradients are plain products too."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import implementations
from seqzoo.kernels.common.vma import match_vma


def product(spec: str, x: Array, y: Array, precision: lax.Precision | None = None) -> Array:
    """`jnp.einsum(spec, x, y)` in x's dtype, for reverse-mode differentiation; every index is in two of the three, "..." in x.

    JAX's own gradient of x y to y is (dy^T x)^T, and for dy^T XLA on CPUs computes dy again, across its rows; here it is x^T dy.
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
