"""An error in place of JAX's own where a loop of an op would be differentiated in reverse mode a second time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_identity = Primitive("first_order")


def first_order(op: str, tree: Any) -> Any:
    """The arrays themselves, results of a pass of an op whose loops have no reverse-mode derivative.

    Passes of an op are differentiated only for second derivatives: the op has its own rule for first ones. Forward over reverse
    mode (`jax.hessian`) works, reverse over reverse raises NotImplementedError, one line that names the setting to change.

    JAX has no such place for forward mode alone: `custom_vjp` calls the same forward rule in both modes, and JAX raises its own
    TypeError, "can't apply forward-mode autodiff", when it evaluates the tangent (`custom_lin_p` in jax/_src/interpreters/ad.py of
    0.10 and 0.11).
    """
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.tree.map(lambda leaf: _identity.bind(leaf, op=op) if floating(leaf) else leaf, tree)


def _transpose(*_, op):
    raise NotImplementedError(
        f"{op}: the gradient of its gradient is asked for in reverse mode, which this implementation has not: set "
        "implementation='reference', or use forward over reverse mode (jax.hessian)"
    )


_identity.def_impl(lambda x, *, op: x)
_identity.def_abstract_eval(lambda x, *, op: x)
ad.deflinear2(_identity, _transpose)
batching.primitive_batchers[_identity] = lambda arguments, axes, *, op: (_identity.bind(*arguments, op=op), axes[0])
mlir.register_lowering(_identity, lambda context, x, *, op: [x])
