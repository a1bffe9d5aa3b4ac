"""Ring attention: with sharded time queries stay, keys and values rotate over the devices (Liu et al. 2023, arXiv:2310.01889).

    step 0          step 1          step 2          step 3
    q0 | k0 v0      q0 | k3 v3      q0 | k2 v2      q0 | k1 v1       after each step every device passes its keys and
    q1 | k1 v1      q1 | k0 v0      q1 | k3 v3      q1 | k2 v2       values on to the next
    q2 | k2 v2      q2 | k1 v1      q2 | k0 v0      q2 | k3 v3
    q3 | k3 v3      q3 | k2 v2      q3 | k1 v1      q3 | k0 v0

In each step a device runs `blockwise.py` over the keys that it holds, and merges the results by the denominators of the partial
softmaxes. In the backward pass the gradients of keys and values travel with them, and return to their device at the end. Keys of
later shards, and with a window those too far back, cost no work: their block ranges are empty.
Cost: as blockwise, on the last device t / shards queries over all keys; 2 x shards messages of one shard's keys and values
(backward 4 x), and memory for one shard's.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.attention import blockwise
from seqzoo.kernels.attention.pairs import PADDING_KEY, PADDING_QUERY, Settings, Tokens
from seqzoo.kernels.common.implementations import state_dtype
from seqzoo.kernels.common.vma import match_vma, zeros_like_vma


class RingPlan(NamedTuple):
    """Settings, block sizes and steps of a call, static when it is traced."""

    settings: Settings
    axis: str
    steps: int  # shards that a query may see, its own included
    sizes: blockwise.BlockSizes  # of the queries and keys of a shard
    cache_sizes: blockwise.BlockSizes  # of the queries of a shard and the keys of the cache


def attend(
    settings: Settings,
    q: Array,
    kv_sets: list[tuple[Array, Array, Tokens]],
    queries: Tokens,
    random_bits: Array | None,
    axis: str,
    steps: int,
) -> Array:
    """`blockwise.attend` for one shard of time; the last of `kv_sets` is this shard's, the one before it a cache, equal on all."""
    b, t, h, _ = q.shape
    *cache, own = kv_sets
    block = blockwise.block_size(t, b * h)
    cache_block = blockwise.block_size(cache[0][0].shape[1], b * h) if cache else 0
    plan = RingPlan(settings, axis, steps, blockwise.BlockSizes(block, block), blockwise.BlockSizes(block, cache_block))
    to_blocks = lambda kv, size: (
        *(blockwise.pad(jnp.moveaxis(x, 1, 2), size, 2) for x in kv[:2]),
        blockwise.pad_tokens(kv[2], size, PADDING_KEY),
    )
    queries = blockwise.pad_tokens(queries, block, PADDING_QUERY)
    random_bits = None if random_bits is None else blockwise.pad(random_bits, block, 2)
    arguments = (
        blockwise.pad(jnp.moveaxis(q, 1, 2), block, 2),
        to_blocks(own, block),
        to_blocks(cache[0], cache_block) if cache else None,
        (queries, random_bits),
    )
    o = cast(Array, _attend(plan, *match_vma(arguments, over=(axis,))))
    return jnp.moveaxis(o[:, :, :t], 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: RingPlan, q: Array, own: tuple, cache: tuple | None, query_info: tuple) -> Array:
    """Computes o [b, h, t, v]; own and cache are (k, v, tokens), query_info (queries, random bits)."""
    return _forward(plan, q, own, cache, query_info)[0]


def _forward(plan, q, own, cache, query_info):
    dtype = state_dtype(q)
    o = zeros_like_vma(q, (*q.shape[:3], own[1].shape[3]), dtype)
    log_sum = zeros_like_vma(q, (*q.shape[:3], 1), dtype) - jnp.inf if plan.settings.scores == "softmax" else None
    merged = (o, log_sum)
    if cache is not None:
        merged = blockwise.forward(*_block_arguments(plan, plan.cache_sizes, q, cache, query_info), dtype)

    def step(_, carry):
        merged, kv = carry
        result = blockwise.forward(*_block_arguments(plan, plan.sizes, q, kv, query_info), dtype)
        return _merge(merged, result), _rotate(plan, kv)

    (o, log_sum), _ = lax.fori_loop(0, plan.steps, step, (merged, own))
    return o.astype(q.dtype), log_sum


def _save(plan, q, own, cache, query_info):
    o, log_sum = _forward(plan, q, own, cache, query_info)
    return o, (q, own, cache, query_info, blockwise.softmax_residuals(o, log_sum))


def _backward(plan, residuals, do):
    q, own, cache, query_info, of_softmax = residuals
    dtype = state_dtype(q)
    gradients_of = lambda kv, sizes: blockwise.backward(*_block_arguments(plan, sizes, q, kv, query_info), of_softmax, do)
    cast = lambda gradients, like: tuple(g.astype(x.dtype) for g, x in zip(gradients, like, strict=True))

    def step(_, carry):
        dq, dk, dv, kv = carry
        dq_step, dk_step, dv_step = gradients_of(kv, plan.sizes)
        dk, dv, kv = _rotate(plan, (dk + dk_step, dv + dv_step, kv))
        return dq + dq_step, dk, dv, kv

    start = (*(zeros_like_vma(x, dtype=dtype) for x in (q, *own[:2])), own)
    dq, dk, dv, _ = lax.fori_loop(0, plan.steps, step, start)
    dk, dv = _rotate(plan, (dk, dv), -plan.steps)  # back to their device, if fewer steps than devices
    d_cache = None
    if cache is not None:
        dq_cache, *gradients = gradients_of(cache, plan.cache_sizes)
        dq, d_cache = dq + dq_cache, (*cast(gradients, cache[:2]), None)
    return match_vma((*cast((dq,), (q,)), (*cast((dk, dv), own[:2]), None), d_cache, None))


_attend.defvjp(_save, _backward)


def _block_arguments(plan, sizes, q, kv, query_info):
    """(settings, sizes, q, k, v, mask info) of one set of keys and values, for `blockwise`."""
    k, v, keys = kv
    queries, random_bits = query_info
    ranges = blockwise.block_ranges(plan.settings, queries, keys, sizes, cached=k.shape[2])
    return plan.settings, sizes, q, k, v, blockwise.MaskInfo(queries, keys, *ranges, random_bits)


def _merge(one: tuple[Array, Array | None], other: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
    """Merges the attention over two sets of keys, each (o, logarithm of the denominators)."""
    if one[1] is None or other[1] is None:
        return one[0] + other[0], None
    largest = jnp.maximum(one[1], other[1])
    base = jnp.where(largest == -jnp.inf, 0, largest)
    weights = jnp.exp(one[1] - base), jnp.exp(other[1] - base)
    total = weights[0] + weights[1]
    o = (one[0] * weights[0] + other[0] * weights[1]) / jnp.where(total == 0, 1, total)
    return o, jnp.where(total == 0, -jnp.inf, base + jnp.log(jnp.where(total == 0, 1, total)))


def _rotate(plan: RingPlan, tree: Any, by: int = 1) -> Any:
    """Passes arrays to the device that is `by` further along the ring."""
    count = lax.axis_size(plan.axis)
    if by % count == 0:
        return tree
    return lax.ppermute(tree, plan.axis, [(i, (i + by) % count) for i in range(count)])
