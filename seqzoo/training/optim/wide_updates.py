"""Updates in float32 for parameters of any dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def wide_updates(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`inner` on gradients and parameters in float32 (wider ones as they are); its state and its updates are as wide.

    In float16 an epsilon of 1e-8 is 0 and a squared gradient underflows, so that an update is 0 / 0; in bfloat16 a running mean
    with a decay of 0.999 rounds away most of what is added to it. `optax.apply_updates` rounds to the parameters' dtype after the
    sum.

    Cost: none for float32 parameters; for narrower ones inner's state is twice as large.
    """

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), tree)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(wide(updates), state, None if params is None else wide(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(wide(params)), update)
