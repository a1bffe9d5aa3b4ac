"""Stack: the blocks of a model, scanned over depth or run in a loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.model.block import Period
from seqzoo.specs import choice

REMAT = {  # what the backward pass may keep of a block
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
STACKS = ("scan", "loop")


class StackState(NamedTuple):
    """The state of a Stack: `periods` has a leading axis over the periods, `rest` has none; either is () where there is none."""

    periods: Any  # or a tuple, see `apart`
    rest: Any

    def apart(self) -> "StackState":
        """The same in a tuple of one state for each period. A Stack takes that too, runs a loop, and returns such a tuple.

        A loop over tokens then changes each cache in its place, while `lax.scan` would write a new stack of them at every token. It
        costs what the scan over layers spares: compile time that grows with depth, and in such a loop XLA holds a copy of the
        parameters, layer by layer.
        """
        leaves = jax.tree.leaves(self.periods)
        count = leaves[0].shape[0] if leaves else 0
        return self._replace(periods=tuple(_at(i, self.periods) for i in range(count)))


class Stack(nnx.Module):
    """`depth` blocks whose mixers cycle through `layers`.

    Whole periods are stacked along a leading parameter axis and run by `lax.scan` (compile time independent of depth), or by a loop
    over the same parameters, which gives the same numbers; what is left of the last period follows in a loop.
    """

    def __init__(self, d_model, *, layers, depth, norm_at="input", stack="scan", remat="none", rngs, **block):
        layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if depth < 1 or not layers:
            raise ValueError(
                f"depth={depth} with {len(layers)} layer specs: wanted at least one of each (model.depth, model.layers)"
            )
        norm_at = (norm_at,) * len(layers) if isinstance(norm_at, str) else tuple(norm_at)
        if len(norm_at) != len(layers):
            raise ValueError(f"norm_at={norm_at!r}: wanted one place, or one for each of {len(layers)} layer specs")
        self.stack = choice("stack", stack, STACKS)
        self.remat = choice("remat", remat, tuple(REMAT))
        self.count, left = divmod(depth, len(layers))

        def period(key, index):
            return Period(d_model, layers, norm_at=norm_at, first=index * len(layers), count=depth, rngs=nnx.Rngs(key), **block)

        keys, indices = jax.random.split(rngs.params(), self.count), jnp.arange(self.count, dtype=jnp.int32)
        self.periods = jax.vmap(period)(keys, indices) if self.count else None
        rest = {"norm_at": norm_at[:left], "first": depth - left, "count": depth, "rngs": rngs, **block}
        self.rest = Period(d_model, layers[:left], **rest) if left else None

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], StackState or None)."""
        state = StackState(None, None) if state is None else state
        keys = (None, None) if key is None else jax.random.split(key)

        def run(period, carry, state, key):
            *carry, state = period(*carry, state=state, segment_ids=segment_ids, positions=positions, key=key)
            return tuple(carry), state

        if REMAT[self.remat] is not None:
            run = jax.checkpoint(run, policy=REMAT[self.remat])
        periods, rest = state
        streams = {}
        for period in (self.periods, self.rest):
            streams |= {} if period is None else period.init_streams(x)
        carry = x, streams
        if self.periods is not None:
            per_period = None if key is None else jax.random.split(keys[0], self.count)
            step = lambda carry, xs: run(xs[0], carry, xs[1], xs[2])
            if isinstance(periods, tuple):
                carry, periods = _loop(step, carry, lambda i: (_at(i, self.periods), periods[i], _at(i, per_period)), self.count)
            elif self.stack == "scan":
                carry, periods = jax.lax.scan(step, carry, (self.periods, periods, per_period))
            else:
                carry, periods = _loop(step, carry, lambda i: _at(i, (self.periods, periods, per_period)), self.count)
                periods = jax.tree.map(lambda *leaves: jnp.stack(leaves), *periods)
        if self.rest is not None:
            carry, rest = run(self.rest, carry, rest, keys[1])
        return carry[0], None if state == (None, None) else StackState(periods, rest)

    def init_state(self, batch, max_length=None, dtype=None) -> StackState:
        """The empty state of every layer."""
        periods = rest = ()
        if self.periods is not None:
            periods = jax.vmap(lambda period: period.init_state(batch, max_length, dtype))(self.periods)
        if self.rest is not None:
            rest = self.rest.init_state(batch, max_length, dtype)
        return StackState(periods, rest)

    def flops(self, batch, length) -> int:
        """Forward model FLOPs."""
        periods = 0 if self.periods is None else self.count * self.periods.flops(batch, length)
        return periods + (0 if self.rest is None else self.rest.flops(batch, length))


def _loop(step, carry, xs, count):
    """`lax.scan` over xs(0) to xs(count - 1) as a Python loop: (carry, the tuple of the outputs)."""
    outputs = []
    for i in range(count):
        carry, y = step(carry, xs(i))
        outputs.append(y)
    return carry, tuple(outputs)


def _at(i, tree):
    return jax.tree.map(lambda leaf: leaf[i], tree)
