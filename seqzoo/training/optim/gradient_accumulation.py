"""Gradient accumulation: micro-batches to save memory, and updates from several batches.

                      training.micro_batches=k               optimizer.accumulate_steps=k
    does              splits each batch into k parts         makes one update from k consecutive batches
    purpose           less memory: activations of one part   a larger batch than the task's, constant or growing
    update            of the whole batch, at every step      of all k batches at once, at the step of the last one
    weights           scored tokens, over the whole batch    scored tokens, over the k batches
    steps             unchanged                              one batch each: data, schedules and evaluations are unchanged
    extra memory      a float32 gradient during the step     a float32 gradient in the optimizer state

Both compute the gradient of all their tokens as if in one batch, however the scored tokens are distributed. They can be combined.

`optax.MultiSteps` is not used: it gives every batch the same weight, although batches of packed documents have different numbers of
scored tokens; its schedule counts updates, although the batch size of a run changes at given steps; it keeps no variance, which the
norm test needs; and it computes the inner update at every batch and discards most results, where `lax.cond` here computes it only
when an update is due.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from pydantic import Field, field_validator, model_validator

from seqzoo.specs import Registry, Settings

registry = Registry("gradient accumulation rule")


@registry.register("norm_test")
class NormTest(Settings):
    """Adaptive batch size: the norm test of AdAdaGrad (Lau, Liu & Kolar 2024, arXiv:2402.11215, after Byrd et al. 2012).

    The variance of the mean gradient is kept within threshold^2 of its squared norm; see `accumulate_gradients`.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Largest standard deviation of the mean gradient over its norm. Published: 0.1 to 0.5."""
    initial_steps: Annotated[int, Field(ge=2, lt=2**31)] = 2
    """Batches of the first update; the variance needs at least 2."""
    max_steps: Annotated[int, Field(ge=4, le=2**30)] = 16
    """Largest number of batches of an update, a power of two."""

    @field_validator("max_steps")
    @classmethod
    def _power_of_two(cls, value):
        if value.bit_count() != 1:
            raise ValueError("wanted a power of two")
        return value

    @model_validator(mode="after")
    def _room_to_grow(self):
        if self.max_steps <= self.initial_steps:
            raise ValueError(f"max_steps={self.max_steps}, wanted more than initial_steps={self.initial_steps}")
        return self


class AccumulateSteps(NamedTuple):
    """Batches per update: by a schedule, or by the norm test."""

    schedule: tuple[tuple[int, int], ...]  # (first step, batches of an update that begins there or later), in order, from step 0
    norm_test: NormTest | None = None

    @property
    def trivial(self) -> bool:
        """True if every update is made from one batch."""
        return self.norm_test is None and all(number == 1 for _, number in self.schedule)


def parse_accumulate_steps(text: str) -> AccumulateSteps:
    """Reads optimizer.accumulate_steps: "4", "0:1, 1000:2, 3000:4" or "norm_test(threshold=0.5)".

    Raises:
      ValueError: none of these.
    """
    if re.match(r"\s*[A-Za-z_]", text):
        norm_test = registry.create(text)
        return AccumulateSteps(((0, norm_test.initial_steps),), norm_test)
    parts = [re.fullmatch(r"\s*(?:(\d{1,9}):)?(\d{1,9})\s*", part) for part in text.split(",")]
    found = tuple((int(part[1] or 0), int(part[2])) for part in parts if part)
    steps = [step for step, _ in found]
    written = len(parts) == 1 or all(part and part[1] is not None for part in parts)
    if len(found) < len(parts) or not written or steps[0] != 0 or steps != sorted(set(steps)) or not all(n for _, n in found):
        raise ValueError(
            f"{text!r}: wanted a number of at least 1, FROM_STEP:NUMBER from step 0 on, in order, such as '0:1, 1000:2, 3000:4', "
            f"or 'norm_test(threshold=0.5)'"
        )
    return AccumulateSteps(found)


class AccumulationState(NamedTuple):
    """The state of `accumulate_gradients`: counts int32, weight float32, all scalars but `mean`."""

    updates: Array  # made so far
    wanted: Array  # batches of the update that the last batch belongs to
    batches: Array  # so far in the unfinished update; 0 after an update
    weight: Array  # the sum of their weights
    mean: optax.Updates  # of their gradients, float32 or better
    norm_test: Any  # () or a NormTestState
    inner: optax.OptState


class NormTestState(NamedTuple):
    """The part of the state that the norm test needs."""

    squares: Array  # sum_i w_i |g_i - mean|^2 over the batches of the unfinished update, float32
    wanted: Array  # batches of the next update, int32


def accumulate_gradients(inner: optax.GradientTransformation, steps: AccumulateSteps) -> optax.GradientTransformationExtraArgs:
    """`inner` at one update of several consecutive batches, from their mean gradient; the other batches give updates of 0.

        mean   sum_i w_i g_i / sum_i w_i      w_i the batch's weight: the gradient of all batches as one

    A batch without weight is not counted. `inner` runs once per update, so its moments, weight decay and noise count updates. The
    number of batches of an update is decided at its first batch: by the schedule, or by the norm test. The norm test keeps the
    variance of the mean at or below threshold^2 of its squared norm; after an update of k batches, the next one takes

        b'     ceil( V / (threshold^2 |mean|^2) )
        V      k / (sum_i w_i) * sum_i w_i |g_i - mean|^2 / (k - 1)

    V is the variance of a batch's gradient, summed over all parameters; with equal weights the unbiased sum_i |g_i - mean|^2 /
    (k - 1). The paper takes it over the examples of a batch; per-example gradients are not available here, so that b' counts
    batches. With fewer than two there is no estimate. b' is rounded up to a power of two, never falls, and is at most max_steps. As
    |mean|^2 contains noise of V / k, b' is hardly ever above k / threshold^2.

    `update(..., weight=w, step=n)`: the batch's weight, and the step of the run, for the schedule. The mean is computed by
    Welford's recurrence, whose sum of squares loses no digits by subtraction, and which returns the gradient of a single batch
    unchanged. `jax.lax.cond` decides if an update is made: a batch without an update costs none of inner's work.

    State: 4 bytes per parameter for the mean, in addition to inner's. Cost of a batch without an update: one pass over its
      gradient. Inside `skip_nonfinite`, which selects between two states, a step holds both for a while: 8 bytes per parameter with
      Adam's.
    """
    inner = optax.with_extra_args_support(inner)
    rule = steps.norm_test
    no_count, no_weight = lambda: jnp.zeros((), jnp.int32), lambda: jnp.zeros((), float)

    def scheduled(step: Any) -> Array:
        first, numbers = (jnp.array(column, jnp.int32) for column in zip(*steps.schedule, strict=True))
        return numbers[jnp.searchsorted(first, step, side="right") - 1]

    def init(params: Any) -> AccumulationState:
        wide = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
        test = () if rule is None else NormTestState(no_weight(), scheduled(0))
        mean = jax.tree.map(wide, params)
        return AccumulationState(no_count(), scheduled(0), no_count(), no_weight(), mean, test, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, AccumulationState]:
        gradient, weight, step = updates, extra.pop("weight"), extra.pop("step")
        next_wanted = scheduled(step) if rule is None else state.norm_test.wanted
        wanted = jnp.where(state.batches == 0, next_wanted, state.wanted)
        count = state.batches + (weight > 0)
        total = state.weight + weight
        fraction = jnp.where(weight > 0, weight / total, 0)
        deviation = jax.tree.map(jnp.subtract, gradient, state.mean)
        mean = jax.tree.map(lambda leaf, change: leaf + fraction.astype(leaf.dtype) * change, state.mean, deviation)
        test = state.norm_test
        if rule is not None:
            squares = test.squares + fraction * state.weight * optax.tree.norm(deviation, squared=True)
            test = test._replace(squares=squares)

        def make_update():
            like = jax.tree.map(lambda leaf, as_given: leaf.astype(as_given.dtype), mean, gradient)
            updates, after = inner.update(like, state.inner, params, **extra)
            next_test = ()
            if rule is not None:
                variance = count / total * test.squares / (count - 1)
                enough = _enough(rule, variance, optax.tree.norm(mean, squared=True))
                next_test = NormTestState(no_weight(), jnp.maximum(wanted, enough))
            zeros = optax.tree.zeros_like(mean)
            return updates, AccumulationState(state.updates + 1, wanted, no_count(), no_weight(), zeros, next_test, after)

        def wait():
            updates = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(make_update)[0])
            return updates, AccumulationState(state.updates, wanted, count, total, mean, test, state.inner)

        return jax.lax.cond(count == wanted, make_update, wait)

    return optax.GradientTransformationExtraArgs(init, update)


def _enough(rule: NormTest, variance: Array, squared_norm: Array) -> Array:
    """The smallest power of two that is b' or more, or max_steps. Without a division: a gradient of 0 needs no special case."""
    powers = jnp.array([2**i for i in range(rule.max_steps.bit_length())], jnp.int32)
    passed = powers * rule.threshold**2 * squared_norm >= variance
    return jnp.where(passed.any(), powers[passed.argmax()], rule.max_steps)


def accumulation_metrics(before: optax.OptState, after: optax.OptState) -> dict[str, Array]:
    """Metrics of a step from the optimizer's state before and after it; {} without `accumulate_gradients`.

    "accumulate_steps": batches of the update that the step's batch belongs to. "updates": made so far. "updated": 1 if this step
    made one.
    """
    is_state = lambda node: isinstance(node, AccumulationState)
    find = lambda state: next(filter(is_state, jax.tree.leaves(state, is_leaf=is_state)), None)
    old, new = find(before), find(after)
    if old is None or new is None:
        return {}
    return {"accumulate_steps": new.wanted, "updates": new.updates, "updated": new.updates - old.updates}


def over_micro_batches(
    function: Callable[[Any, Any, Array], tuple[Any, Any]], count: int, batch: Any, carry: Any, carry_axes: Any, key: Array
) -> tuple[Any, Any]:
    """The sum of a function over micro-batches, run one after the other; it has the dtypes of the function's result.

    Args:
      function: (micro-batch, carry, key) -> (tree to be summed, carry after it). Sums are taken in float32 or better.
      count: number of micro-batches; it divides the rows.
      batch: tree of arrays [b, ...].
      carry: tree of state per row, or None.
      carry_axes: tree like `carry` of the axis of rows of each leaf.
      key: key of the batch; each micro-batch has its own.
    """
    batches = jax.tree.map(lambda leaf: _split(leaf, 0, count), batch)
    carries = None if carry is None else jax.tree.map(lambda leaf, axis: _split(leaf, axis, count), carry, carry_axes)

    def add(total: Any, xs: Any) -> tuple[Any, Any]:
        number, batch, carry = xs
        found, carry = function(batch, carry, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), carry

    first = jax.tree.map(lambda leaf: leaf[0], (batches, carries))
    like, _ = jax.eval_shape(function, *first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), like)
    total, carries = jax.lax.scan(add, zeros, (jnp.arange(count), batches, carries))
    total = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, like)
    return total, None if carry is None else jax.tree.map(_join, carries, carry_axes)


def _split(leaf: Array, axis: int, count: int) -> Array:
    """Rows in `count` micro-batches, on a new leading axis: row r goes to micro-batch r mod count.

    So a device that holds consecutive rows holds consecutive rows of every micro-batch, and nothing is sent.
    """
    rows = leaf.shape[axis] // count
    return jnp.moveaxis(leaf.reshape(*leaf.shape[:axis], rows, count, *leaf.shape[axis + 1 :]), axis + 1, 0)


def _join(leaf: Array, axis: int) -> Array:
    """The inverse of `_split`."""
    whole = jnp.moveaxis(leaf, 0, axis + 1)
    return whole.reshape(*whole.shape[:axis], -1, *whole.shape[axis + 2 :])
