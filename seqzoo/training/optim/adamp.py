"""AdamP: Adam whose steps do not lengthen scale-invariant weights, those whose length the loss does not depend on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

DELTA = 0.1  # Heo et al. 2020, and their code


def scale_by_adamp(b1: float, b2: float, epsilon: float, views: Any) -> optax.GradientTransformation:
    """Adam's direction, without its part along weights that are scale-invariant (Heo et al. 2020, arXiv:2006.08217).

        p = m^ / (sqrt(v^) + epsilon)                              Adam's direction from the gradient g
        q = p - w^ (w^ . p)    if |cos(w, g)| < DELTA / sqrt(n),   w^ = w / |w|, n numbers in w
        q = p                  otherwise

    A loss that does not change with the length of w has a gradient orthogonal to w, which the cosine detects. Momentum's steps are
    not orthogonal: they lengthen w, and so reduce the effective learning rate. As in the authors' code, a matrix is projected by
    output channel if the largest cosine of its channels is small enough, else as a whole if its own is; vectors never are. Their
    code also weakens weight decay tenfold where it projects; here weight decay is the same everywhere.

    Args:
      b1, b2, epsilon: Adam's.
      views: tree like the parameters; for each the tuples of axes, counted from the end, that make one w: the narrow view first,
        all axes of one layer last; () for parameters that are not projected. Axes before them are layers, each decided separately.
    State: Adam's, 2 numbers per parameter. Cost: three reductions per parameter and view.
    """
    adam = optax.scale_by_adam(b1, b2, epsilon)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        direction, state = adam.update(updates, state)
        projected = lambda p, g, w, views: _projected(p, g, w, views, epsilon)
        return jax.tree.map(projected, direction, updates, params, views), state

    return optax.GradientTransformation(adam.init, update)


def _projected(p: Array, g: Array, w: Array, views: tuple[tuple[int, ...], ...], epsilon: float) -> Array:
    """p without its part along w, in the first of the views in which g is orthogonal to w."""
    q = p
    for axes in reversed(views):  # so that the first that fits is used
        dot = lambda a, b, axes=axes: jnp.sum(a * b, axes, keepdims=True)
        length = jnp.sqrt(dot(w, w))
        cosine = jnp.abs(dot(g, w)) / jnp.maximum(jnp.sqrt(dot(g, g)) * length, epsilon)
        small = jnp.max(cosine, views[-1], keepdims=True) < DELTA / math.sqrt(math.prod(w.shape[axis] for axis in axes))
        unit = w / (length + epsilon)
        q = jnp.where(small, p - unit * dot(unit, p), q)
    return q
