"""Learning-rate schedules: the learning rate at each step, a linear warm-up from 0, then the schedule.

Each schedule is a class with its settings, chosen by a spec string, `optimizer.schedule="cosine(warmup_steps=50)"`:

    constant   the same to the end
    linear     straight down to the last step
    cosine     down to the last step along a cosine
    wsd        the same, then straight down in a cooldown ("warm-up, stable, decay")
    rsqrt      down as 1 / sqrt(step), with or without a cooldown

In the formulas p is optimizer.learning_rate, w warmup_steps, n the steps of the run, f final_fraction, x = (step - w) / (n - w),
and c the steps of the cooldown: cooldown_fraction * n, rounded, at least 1 and at most n - w, so that a cooldown begins after the
warm-up. The values at step n are never used: the last step is n - 1. A schedule of your own is a function:

    @optim.register_schedule("steps")
    def steps(learning_rate: float, *, every: int = 1000) -> optax.Schedule:
        return optax.exponential_decay(learning_rate, every, 0.5, staircase=True)
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import jax.numpy as jnp
import optax
from jax import Array
from pydantic import Field, model_validator

from seqzoo.specs import Registry, Settings
from seqzoo.training.optim.functions import FunctionSettings, settings_of_function

Steps = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Cooldown = Annotated[float, Field(gt=0, le=1)]

Made = TypeVar("Made", bound=Callable[..., Any])

registry = Registry("schedule")


def register_schedule(name: str) -> Callable[[Made], Made]:
    """Decorator that enrols a schedule: a subclass of `Schedule`, or a function that returns an optax schedule.

    The arguments of the function are the settings of the schedule, typed by their annotations; `learning_rate` and `steps` get
    optimizer.learning_rate and the steps of the run. The schedule is used as it is: a warm-up is its own.
    """

    def enrol(made: Made) -> Made:
        owner: Any = made
        registry.register(name)(owner if isinstance(owner, type) else settings_of_function(owner, FunctionSchedule))
        return made

    return enrol


class FunctionSchedule(FunctionSettings):
    """A schedule that is a function of its settings."""

    reserved = ("learning_rate", "steps")

    def schedule(self, learning_rate: float | Array, steps: int) -> optax.Schedule:
        """The function's schedule."""
        return self.call(learning_rate=learning_rate, steps=steps)


class Schedule(Settings):
    """A learning-rate schedule with its settings."""

    warmup_steps: Steps = 50
    """Steps over which the learning rate rises linearly from 0."""

    def schedule(self, learning_rate: float | Array, steps: int) -> optax.Schedule:
        """The learning rate by step: p step / w while step < w, then that of `after_warmup`.

        Args:
          learning_rate: p, the largest one; in a step a traced scalar.
          steps: n, the steps of the run.
        """
        after = self.after_warmup(learning_rate, steps)
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(0.0, learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def after_warmup(self, learning_rate: float | Array, steps: int) -> optax.Schedule:
        """The learning rate by step - w."""
        raise NotImplementedError

    def rest(self, steps: int) -> int:
        """n - w, at least 1: a run may end in its warm-up."""
        return max(steps - self.warmup_steps, 1)


@register_schedule("constant")
class Constant(Schedule):
    """The learning rate stays: p."""

    def after_warmup(self, learning_rate, steps):
        return optax.constant_schedule(learning_rate)


@register_schedule("linear")
class Linear(Schedule):
    """The learning rate falls straight to the last step: p (1 - (1 - f) x)."""

    final_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the largest."""

    def after_warmup(self, learning_rate, steps):
        return optax.linear_schedule(learning_rate, learning_rate * self.final_fraction, self.rest(steps))


@register_schedule("cosine")
class Cosine(Schedule):
    """The learning rate falls along a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983): p (f + (1 - f) (1 + cos(pi x)) / 2)."""

    final_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the largest."""

    def after_warmup(self, learning_rate, steps):
        return optax.cosine_decay_schedule(learning_rate, self.rest(steps), alpha=self.final_fraction)


@register_schedule("wsd")
class WSD(Schedule):
    """The learning rate stays, then falls straight in a cooldown (Hägele et al. 2024, arXiv:2405.18392).

    p down(step), down(step) = 1 - (1 - f) max(0, 1 - (n - step) / c)
    """

    final_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the largest."""
    cooldown_fraction: Cooldown = 0.2
    """Fraction of all steps, at the end, in which the learning rate falls."""

    def after_warmup(self, learning_rate, steps):
        down = _cooldown(self.cooldown_fraction, self.final_fraction, steps, self.rest(steps))
        return lambda count: learning_rate * down(count)


@register_schedule("rsqrt")
class InverseSquareRoot(Schedule):
    """The learning rate falls as 1 / sqrt(step) (Vaswani et al. 2017, arXiv:1706.03762; a cooldown: Zhai et al. 2021, 2106.04560).

    p sqrt(w / max(step, w)) down(step), down as in "wsd", or 1 without a cooldown
    """

    warmup_steps: Annotated[int, Field(ge=1, lt=2**31)] = 50
    """Steps over which the learning rate rises linearly from 0; it falls as sqrt(warmup_steps / step) after them."""
    final_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of its value without a cooldown."""
    cooldown_fraction: Cooldown | None = None
    """Fraction of all steps, at the end, in which the learning rate falls linearly; None: no cooldown."""

    @model_validator(mode="after")
    def _final_fraction_is_of_a_cooldown(self):
        if self.cooldown_fraction is None and self.final_fraction != type(self).model_fields["final_fraction"].default:
            raise ValueError(f"final_fraction={self.final_fraction} has no use without a cooldown; wanted a cooldown_fraction")
        return self

    def after_warmup(self, learning_rate, steps):
        w = self.warmup_steps
        down = optax.constant_schedule(1.0)
        if self.cooldown_fraction is not None:
            down = _cooldown(self.cooldown_fraction, self.final_fraction, steps, self.rest(steps))
        return lambda count: learning_rate * down(count) * jnp.sqrt(w / (jnp.maximum(count, 0) + w))


def _cooldown(fraction: float, final: float, steps: int, rest: int) -> optax.Schedule:
    """down(step) by step - w."""
    length = min(max(round(fraction * steps), 1), rest)
    return optax.linear_schedule(1.0, final, length, rest - length)
