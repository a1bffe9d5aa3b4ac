"""The derivative rule of the selective scan, the same for every implementation but the reference, and its context parallelism.

Forward:   state before this shard -> implementation.forward  -> y, last state             residuals: inputs, checkpoints
Backward:  gradient after this shard -> implementation.backward -> gradients of the inputs and the initial state

Without a mesh that shards time there is one shard: its initial state is the caller's. With one, each shard first finds the state
before it (forward) and the gradient of the state after it (backward) from the transitions of the other shards: h -> decay h +
added over the tokens of a shard, two numbers per state (`recurrent.state_transition`). States are [b, n, d] here: see
`recurrent.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import sharding
from seqzoo.kernels.common.vma import match_vma
from seqzoo.kernels.linear_recurrence.chunkwise import apply_transition
from seqzoo.kernels.selective_scan import recurrent, reference


class Implementation(NamedTuple):
    """The two passes of an implementation."""

    forward: Callable  # (g, u, A, B, C, initial) -> (y, last state, checkpoints)
    backward: Callable  # (g, u, A, B, C, checkpoints, dy, dlast) -> gradients of (g, u, A, B, C, initial)


class Settings(NamedTuple):
    """Settings of a call: all but its arrays."""

    implementation: Implementation | None  # None: the reference
    time_axis: str | None  # the mesh axis that shards time


def run_shard(settings: Settings, *arrays: Array) -> tuple[Array, Array]:
    """Computes y [b, t, d] of one shard, and the last state [b, d, n] of all, from (g, u, A, B, C, initial state of all)."""
    arrays = match_vma(arrays, over=sharding.axis_tuple(settings.time_axis))
    y, last = reference.scan(*arrays) if settings.implementation is None else differentiable_scan(settings, *arrays)
    return y, sharding.broadcast_from_shard(-1, last, settings.time_axis)


def _scan(settings: Settings, g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array]:
    return _forward(settings, g, u, A, B, C, initial)[0]


def _forward(settings, g, u, A, B, C, initial):
    initial = jnp.swapaxes(initial, 1, 2)
    if settings.time_axis is not None:
        transition = recurrent.state_transition(g, u, A.T, B)
        initial = sharding.prefix_over_shards(apply_transition, transition, initial, settings.time_axis)
    y, last, checkpoints = settings.implementation.forward(g, u, A.T, B, C, initial)
    return (y, jnp.swapaxes(last, 1, 2)), (g, u, A, B, C, checkpoints)


def _backward(settings, residuals, cotangents):
    g, u, A, B, C, checkpoints = residuals
    dy, dlast = cotangents
    dlast = jnp.swapaxes(dlast, 1, 2)
    if settings.time_axis is not None:
        dlast = dlast + _gradient_after_shard(settings, g, A, C, dy, dlast)
    dg, du, dA, dB, dC, dinitial = settings.implementation.backward(g, u, A.T, B, C, checkpoints, dy, dlast)
    gradients = dg, du, dA.T, dB, dC, sharding.mask_to_shard(0, jnp.swapaxes(dinitial, 1, 2), settings.time_axis)
    return match_vma(gradients)


differentiable_scan = jax.custom_vjp(_scan, nondiff_argnums=(0,))
differentiable_scan.defvjp(_forward, _backward)


def _gradient_after_shard(settings, g, A, C, dy, dlast):
    """Gradient of this shard's last state by way of later shards; dlast, of the last state of all, is zero on all but one."""
    decay, added = recurrent.gradient_transition(g, A.T, C, dy)
    transition, zero = (decay, apply_transition(dlast, (decay, added))), jnp.zeros_like(dlast)
    return sharding.prefix_over_shards(apply_transition, transition, zero, settings.time_axis, reverse=True)
