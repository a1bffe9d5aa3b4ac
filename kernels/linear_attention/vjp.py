"""The derivative rule of linear attention, the same for every implementation but the reference, and its context parallelism.

Forward:   state before this shard -> implementation.forward  -> o, last state, residuals
Backward:  gradient after this shard -> implementation.backward -> gradients of the inputs

Without a mesh that shards time there is one shard: its initial state is the caller's. With one, each shard first finds the state
before it (forward) and the gradient of the state after it (backward) from the transitions of the other shards
(`shard_transition.py`), and then does exactly the same.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..common import sharding
from ..common.vma import match_vma
from .shard_transition import apply_transition, gradient_transition, state_transition
from .transition import Transition


class Implementation(NamedTuple):
    """The two passes of an implementation. `backward` takes the residuals of `forward`."""

    # (q, k, v, transition, state, *, scale, ..., output_dtype, save), see `Settings` -> (o, last state, residuals)
    forward: Callable
    backward: Callable  # (q, k, v, transition, residuals, d_o, d_last, *, ...) -> (dq, dk, dv, dtransition, dstate)


class Settings(NamedTuple):
    """Settings of a call: all but its arrays."""

    forward: Implementation  # for calls without gradients
    training: Implementation  # for both passes of calls with gradients
    scale: float
    read_before_write: bool
    chunk_size: int
    resets: bool  # documents may start: a decay of exactly 0 selects zeros, so that not even 0 inf = NaN comes through
    output_dtype: Any
    time_axis: str | None  # the mesh axis that shards time

    @property
    def keywords(self) -> dict:
        """The keyword arguments of an implementation."""
        return {name: getattr(self, name) for name in ("scale", "read_before_write", "chunk_size", "resets", "output_dtype")}


def _attend(settings: Settings, q: Array, k: Array, v: Array, transition: Transition, state: Array) -> tuple[Array, Array]:
    """Computes (o, last state). All arrays must vary over the same mesh axes (`match_vma`)."""
    state = _state_before_shard(settings, settings.forward, k, v, transition, state)
    o, last, _ = settings.forward.forward(q, k, v, transition, state, **settings.keywords, save=False)
    return o, last


def _attend_forward(settings, q, k, v, transition, state):
    state = _state_before_shard(settings, settings.training, k, v, transition, state)
    o, last, residuals = settings.training.forward(q, k, v, transition, state, **settings.keywords, save=True)
    return (o, last), (q, k, v, transition, residuals)


def _attend_backward(settings, saved, gradients):
    q, k, v, transition, residuals = saved
    d_o, d_last = gradients
    d_last = _gradient_after_shard(settings, q, k, transition, d_o, d_last)
    *d_inputs, d_state = settings.training.backward(q, k, v, transition, residuals, d_o, d_last, **settings.keywords)
    return match_vma((*d_inputs, sharding.mask_to_shard(0, d_state, settings.time_axis)))


attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
attend.defvjp(_attend_forward, _attend_backward)


def attend_shard(settings: Settings, q: Array, k: Array, v: Array, transition: Transition, state: Array) -> tuple[Array, Array]:
    """`attend` inside `run_sharded`: one shard of the arrays, the initial state of all shards, and the last state of all."""
    arrays = match_vma((q, k, v, transition, state), over=sharding.axis_tuple(settings.time_axis))
    o, last = attend(settings, *arrays)
    return o, sharding.broadcast_from_shard(-1, last, settings.time_axis)


def _state_before_shard(settings, implementation, k, v, transition, state):
    if settings.time_axis is None:
        return state
    shard = state_transition(_run_alone(settings, implementation), k, v, transition, state.dtype)
    return sharding.prefix_over_shards(apply_transition, shard, state, settings.time_axis)


def _gradient_after_shard(settings, q, k, transition, d_o, d_last):
    """The gradient of the state after this shard: `d_last` is added to that of the last shard's, and is zero elsewhere."""
    if settings.time_axis is None:
        return d_last
    run = _run_alone(settings, settings.training)
    shard = gradient_transition(run, q, k, d_o, transition, d_last.dtype, settings.scale, settings.read_before_write)
    shard = shard._replace(added=apply_transition(d_last, shard))
    after = sharding.prefix_over_shards(apply_transition, shard, jnp.zeros_like(d_last), settings.time_axis, reverse=True)
    return d_last + after


def _run_alone(settings, implementation):
    """The forward pass of an implementation for its last state; nothing uses the outputs."""
    keywords = settings.keywords | {"scale": 1.0, "read_before_write": True, "save": False}
    return functools.partial(implementation.forward, **keywords)
