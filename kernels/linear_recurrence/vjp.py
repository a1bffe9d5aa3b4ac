"""The derivative rule of the linear recurrence, the same for every implementation but the reference, and its context parallelism.

Forward:   state before this shard -> implementation.forward  -> h, last state             residuals: a, h, initial state
Backward:  gradient after this shard -> implementation.backward -> gradients of a, b and the initial state

Without a mesh that shards time there is one shard: its initial state is the caller's. With one, each shard first finds the state
before it (forward) and the gradient of the state after it (backward) from the transitions of the other shards: h -> product h +
added over the tokens of a shard, two numbers per channel (`recurrent.state_transition`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import sharding
from seqzoo.kernels.common.vma import match_vma
from seqzoo.kernels.linear_recurrence import recurrent, reference
from seqzoo.kernels.linear_recurrence.chunkwise import apply_transition
from seqzoo.kernels.linear_recurrence.decay import FORGET, Decay


class Implementation(NamedTuple):
    """The two passes of an implementation."""

    forward: Callable  # (decay, b, initial) -> (h, last state)
    backward: Callable  # (decay, h, initial, dh, dlast) -> gradients of (decay.values, b, initial)


class Settings(NamedTuple):
    """Settings of a call: all but its arrays."""

    implementation: Implementation | None  # None: the reference
    time_axis: str | None  # the mesh axis that shards time
    reverse: bool  # from the last token, and the last shard, to the first


def run_shard(settings: Settings, log: bool, a: Array, mask: Array | None, b: Array, initial: Array) -> tuple[Array, Array]:
    """Computes h [b, t, ...] of one shard, and the last state [b, ...] of all, the initial state of all given."""
    shape = b.shape
    if settings.reverse:
        a, mask, b = jax.tree.map(partial(jnp.flip, axis=1), (a, mask, b))
    a, b, initial = a.reshape(*a.shape[:2], -1), b.reshape(*shape[:2], -1), initial.reshape(shape[0], -1)
    arrays = match_vma((Decay(a, mask, log), b, initial), over=sharding.axis_tuple(settings.time_axis))
    h, last = _reference(*arrays) if settings.implementation is None else differentiable_recurrence(settings, *arrays)
    h, last = h.reshape(shape), last.reshape(shape[:1] + shape[2:])
    last = sharding.broadcast_from_shard(0 if settings.reverse else -1, last, settings.time_axis)
    return jnp.flip(h, axis=1) if settings.reverse else h, last


def _reference(decay, b, initial):
    a = jnp.broadcast_to(decay.all_tokens(initial.dtype), b.shape)
    starts = jnp.zeros(b.shape[:2], bool) if decay.mask is None else decay.mask == FORGET
    h, last = reference.scan(a, b.astype(initial.dtype), starts, initial)
    return h.astype(b.dtype), last


def _recurrence(settings: Settings, decay: Decay, b: Array, initial: Array) -> tuple[Array, Array]:
    return _forward(settings, decay, b, initial)[0]


def _forward(settings, decay, b, initial):
    if settings.time_axis is not None:
        transition = recurrent.state_transition(decay, b, initial.dtype)
        initial = sharding.prefix_over_shards(apply_transition, transition, initial, settings.time_axis, settings.reverse)
    h, last = settings.implementation.forward(decay, b, initial)
    return (h, last), (decay, h, initial)


def _backward(settings, residuals, cotangents):
    decay, h, initial = residuals
    dh, dlast = cotangents
    if settings.time_axis is not None:
        dlast = dlast + _gradient_after_shard(settings, decay, dh, dlast)
    da, db, dinitial = settings.implementation.backward(decay, h, initial, dh, dlast)
    dinitial = sharding.mask_to_shard(-1 if settings.reverse else 0, dinitial, settings.time_axis)
    return match_vma((replace(decay, values=da, mask=None), db, dinitial))


differentiable_recurrence = jax.custom_vjp(_recurrence, nondiff_argnums=(0,))
differentiable_recurrence.defvjp(_forward, _backward)


def _gradient_after_shard(settings, decay, dh, dlast):
    """Gradient of this shard's last state by way of later shards; dlast, of the last state of all, is zero on all but one."""
    product, added = recurrent.gradient_transition(decay, dh, dlast.dtype)
    transition, zero = (product, apply_transition(dlast, (product, added))), jnp.zeros_like(dlast)
    return sharding.prefix_over_shards(apply_transition, transition, zero, settings.time_axis, not settings.reverse)
