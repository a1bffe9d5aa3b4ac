"""Skipped steps: a step whose loss or gradient is not finite, or whose gradient is a spike, changes nothing and is counted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

MEMORY = 100  # accepted steps over which the gradient norm is averaged, and before which nothing is a spike


class SkipState(NamedTuple):
    """The state of `skip_nonfinite`: counts int32, norm float32, all scalars."""

    total: Array  # skipped steps so far
    in_a_row: Array  # skipped steps since the last accepted step
    accepted: Array  # all others
    norm: Array  # running mean of the accepted steps' gradient norms
    inner: optax.OptState


def skip_nonfinite(inner: optax.GradientTransformation, spikes: float | None = None) -> optax.GradientTransformationExtraArgs:
    """`inner`, but a step whose loss or gradient norm is not finite gives updates of 0 and leaves inner's state as it was.

    With `spikes`, so does a step whose gradient norm is above `spikes` times the mean norm of the last accepted steps, about MEMORY
    of them: norm += (norm_t - norm) / min(accepted, MEMORY). The mean is over accepted steps only, so that no spike raises the
    limit for the next; if the norm has grown permanently, steps are skipped until the run stops (optimizer.skip_limit). It is the
    arithmetic mean and not that of logarithms, as steps without any loss have norm 0. Nothing is a spike before MEMORY steps were
    accepted: norms fall steeply at the start.

    `update(..., value=loss)`: without it only the gradient is checked. Both outcomes are computed and one is selected, without a
    branch, so that arrays are donated and sharded as without this wrapper.

    Not optax.apply_if_finite: that accepts updates that are not finite after too many of them in a row, and sees neither the loss
    nor the norm; nor optax.conditionally_mask, whose condition has no state.

    State: 16 bytes more than inner's.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(zero, zero, zero, jnp.zeros((), jnp.float32), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **extra: Any) -> tuple[Any, SkipState]:
        norm = optax.tree.norm(optax.tree.cast(updates, jnp.float32))
        good = jnp.isfinite(norm)
        if value is not None:
            good &= jnp.isfinite(value)
        if spikes is not None:
            good &= (state.accepted < MEMORY) | (norm <= spikes * state.norm)
        if_good = lambda new, old: optax.tree.where(good, new, old)
        new, after = inner.update(updates, state.inner, params, **extra)
        accepted = state.accepted + 1
        mean = state.norm + (norm - state.norm) / jnp.minimum(accepted, MEMORY)
        return if_good(new, optax.tree.zeros_like(new)), SkipState(
            state.total + ~good,
            jnp.where(good, 0, state.in_a_row + 1),
            *if_good((accepted, mean, after), (state.accepted, state.norm, state.inner)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def skip_counts(opt_state: optax.OptState) -> tuple[Array, Array]:
    """(skipped steps in all, skipped steps in a row up to now), int32 scalars on the devices.

    Raises ValueError if the optimizer does not skip steps.
    """
    is_skip_state = lambda node: isinstance(node, SkipState)
    found = next(filter(is_skip_state, jax.tree.leaves(opt_state, is_leaf=is_skip_state)), None)
    if found is None:
        raise ValueError("the optimizer does not count skipped steps: optimizer.skip_limit is None, wanted a number")
    return found.total, found.in_a_row
