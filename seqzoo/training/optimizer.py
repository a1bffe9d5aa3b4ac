"""AdamW from its settings."""

from collections.abc import Callable
from typing import Any

import optax
from jax import Array

from seqzoo import config


def schedule(settings: config.Optimizer, steps: int) -> Callable[[Array], Array]:
    """The learning rate by step: linear warm-up from 0, then constant, or a cosine that ends at the last step."""
    peak = settings.learning_rate
    if settings.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - settings.warmup_steps, 1), alpha=settings.final_fraction)
    if not settings.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, settings.warmup_steps), after], [settings.warmup_steps])


def make(settings: config.Optimizer, steps: int, decay_mask: Any) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW.

    Args:
      settings: the section `optimizer`.
      steps: length of the run, where the cosine ends.
      decay_mask: tree like the parameters of bools: where weight decay acts unless settings.decay_all.
    """
    b1, b2 = settings.betas
    mask = None if settings.decay_all else decay_mask
    adamw = optax.adamw(
        schedule(settings, steps), b1=b1, b2=b2, eps=settings.epsilon, weight_decay=settings.weight_decay, mask=mask
    )
    return adamw if settings.clip_norm is None else optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)
