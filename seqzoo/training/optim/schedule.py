"""The learning rate by step."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array

from seqzoo import config

WSD_COOLDOWN = 0.2  # of all steps; Hägele et al. 2024, arXiv:2405.18392


def schedule(settings: config.Optimizer, steps: int) -> Callable[[Array], Array]:
    """The learning rate at each step: a linear warm-up from 0, and then what `settings.schedule` names.

    With p = learning_rate, w = warmup_steps, n = steps, f = final_fraction, x = (step - w) / (n - w), c = cooldown_fraction * n,
    rounded, at least 1 and at most n - w, so that a cooldown begins behind the warm-up:

        step < w    p step / w
        constant    p
        linear      p (1 - (1 - f) x)
        cosine      p (f + (1 - f) (1 + cos(pi x)) / 2)
        wsd         p down(step)                               down(step) = 1 - (1 - f) max(0, 1 - (n - step) / c)
        rsqrt       p sqrt(w / max(step, w)) down(step)        without a cooldown down(step) = 1

    The values at step = n are never used: the last step is n - 1.
    """
    peak, warmup, final = settings.learning_rate, settings.warmup_steps, settings.final_fraction
    rest = max(steps - warmup, 1)
    fraction = settings.cooldown_fraction or (WSD_COOLDOWN if settings.schedule == "wsd" else 0)
    length = min(max(round(fraction * steps), 1), rest)
    down = optax.linear_schedule(1.0, final, length, rest - length) if fraction else optax.constant_schedule(1.0)

    match settings.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, peak * final, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=final)
        case "wsd":
            after = lambda count: peak * down(count)
        case "rsqrt":
            after = lambda count: peak * down(count) * jnp.sqrt(warmup / (jnp.maximum(count, 0) + warmup))
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
