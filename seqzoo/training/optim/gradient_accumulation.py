"""Updates made of several batches: a large batch without its memory, and one that may grow on its way."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


class AccumulationState(NamedTuple):
    """The state of `accumulate_gradients`: counts int32, weight float32, all scalars but `mean`."""

    updates: Array  # made so far
    number: Array  # of batches in the update that the last batch went into
    count: Array  # of batches in the update under way; 0 behind an update
    weight: Array  # the sum of their weights
    mean: optax.Updates  # of their gradients, float32 or better
    test: Any  # () or a NormTestState
    inner: optax.OptState


class NormTestState(NamedTuple):
    """What the norm test adds to the state."""

    variance_sum: Array  # sum_i w_i |g_i - mean|^2 over the batches of the update under way, float32
    wanted: Array  # batches of the next update, int32


def accumulate_gradients(
    inner: optax.GradientTransformation,
    numbers: Sequence[tuple[int, int]],
    norm_test: float | None = None,
    most: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, but one update of several consecutive batches: of their mean gradient, all others giving updates of 0.

        mean   sum_i w_i g_i / sum_i w_i      w_i the batch's weight: that of the batches as one

    A batch without weight is not counted. `inner` runs once per update, so its moments, its weight decay and its noise know nothing
    of the batches between. How many batches an update takes is decided at its first: by `numbers`, or by the norm test (Lau, Liu &
    Kolar 2024, arXiv:2402.11215, after Byrd et al. 2012, doi:10.1007/s10107-012-0572-5). That wants the variance of the mean within
    norm_test^2 of its square, and after an update of k batches takes as many for the next as would do:

        b'     ceil( V / (norm_test^2 |mean|^2) )
        V      k / (sum_i w_i) * sum_i w_i |g_i - mean|^2 / (k - 1)

    V is the variance of a batch's gradient, summed over all parameters; with equal weights the unbiased sum_i |g_i - mean|^2 /
    (k - 1). The paper takes it over the examples of a batch, whose single gradients nobody has here; batches instead of examples
    give b' in batches. With fewer than two there is no estimate. b' is rounded up to a power of two, never falls, and is at most
    `most`. As |mean|^2 has a share V / k of noise, b' is hardly ever above k / norm_test^2.

    `update(..., weight=w, step=n)`: the batch's weight, and the step of the run, which `numbers` is by. The mean is taken by
    Welford's recurrence, whose variance_sum cancels nothing, and which gives a single batch's gradient as it was. Whether an update
    is made is a branch, `jax.lax.cond`: a batch without one costs none of inner's work.

    Args:
      inner: what makes an update of a gradient.
      numbers: (first step, batches of an update that begins there or later), in order, the first from step 0.
      norm_test: None, or how large the mean's standard deviation may be beside the mean; `numbers` then says where to begin.
      most: the norm test's largest number, a power of two.
    State: the mean's 4 bytes per parameter more than inner's. Cost: of a batch without an update, one pass over its gradient.
    Inside `skip_nonfinite.skip_nonfinite`, which chooses between two states, a step holds both for a while: 8 bytes per parameter
    with Adam's.
    """
    inner = optax.with_extra_args_support(inner)
    none, nothing = lambda: jnp.zeros((), jnp.int32), lambda: jnp.zeros((), float)

    def scheduled(step):
        first, counts = (jnp.array(column, jnp.int32) for column in zip(*numbers, strict=True))
        return counts[jnp.searchsorted(first, step, side="right") - 1]

    def init(parameters):
        wide = lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
        test = () if norm_test is None else NormTestState(nothing(), scheduled(0))
        return AccumulationState(
            none(), scheduled(0), none(), nothing(), jax.tree.map(wide, parameters), test, inner.init(parameters)
        )

    def update(gradient, state, parameters=None, *, weight, step, **extra):
        wanted = scheduled(step) if norm_test is None else state.test.wanted
        number = jnp.where(state.count == 0, wanted, state.number)
        count = state.count + (weight > 0)
        total = state.weight + weight
        share = jnp.where(weight > 0, weight / total, 0)
        away = jax.tree.map(jnp.subtract, gradient, state.mean)
        mean = jax.tree.map(lambda leaf, change: leaf + share.astype(leaf.dtype) * change, state.mean, away)
        test = ()
        if norm_test is not None:
            test = state.test._replace(
                variance_sum=state.test.variance_sum + share * state.weight * optax.tree.norm(away, squared=True)
            )

        def now():
            like = jax.tree.map(lambda leaf, as_given: leaf.astype(as_given.dtype), mean, gradient)
            updates, after = inner.update(like, state.inner, parameters, **extra)
            grown = ()
            if norm_test is not None:
                variance = count / total * test.variance_sum / (count - 1)
                grown = NormTestState(nothing(), jnp.maximum(number, enough(variance, optax.tree.norm(mean, squared=True))))
            return updates, AccumulationState(
                state.updates + 1, number, none(), nothing(), optax.tree.zeros_like(mean), grown, after
            )

        def later():
            updates = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(now)[0])
            return updates, AccumulationState(state.updates, number, count, total, mean, test, state.inner)

        return jax.lax.cond(count == number, now, later)

    def enough(variance, square):
        """The smallest power of two that is b' or more, or `most`: without dividing, so that no gradient is no special case."""
        powers = jnp.array([2**i for i in range(most.bit_length())], jnp.int32)
        passed = powers * norm_test**2 * square >= variance
        return jnp.where(passed.any(), powers[passed.argmax()], most)

    return optax.GradientTransformationExtraArgs(init, update)


def accumulation_metrics(before: optax.OptState, after: optax.OptState) -> dict[str, Array]:
    """What a step's metrics say of updates, from the optimizer's state before and after it; {} without `accumulate_gradients`.

    "accumulate_steps": how many make the update that the step's batch went into. "updates": made so far. "updated": 1 if this step
    made one.
    """
    is_state = lambda node: isinstance(node, AccumulationState)
    find = lambda state: next(filter(is_state, jax.tree.leaves(state, is_leaf=is_state)), None)
    before, after = find(before), find(after)
    if after is None:
        return {}
    return {"accumulate_steps": after.number, "updates": after.updates, "updated": after.updates - before.updates}
