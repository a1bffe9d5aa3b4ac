"""The optimizer: clipping, noise, update rule, gradient accumulation, skipped steps and learning rate in one transformation."""

import zlib

import optax
from flax import nnx
from jax import Array

from seqzoo import config
from seqzoo.training.optim import gradient_accumulation, schedules, update_rules
from seqzoo.training.optim.skip_nonfinite import skip_nonfinite
from seqzoo.training.optim.wide_updates import wide_updates


def make_optimizer(
    settings: config.Optimizer,
    steps: int,
    parameters: nnx.State,
    seed: int = 0,
    *,
    learning_rate: float | Array | None = None,
    weight_decay: float | Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, `skip_nonfinite(accumulate_gradients(clip, noise, update rule))` times minus the learning rate.

        g      the gradient, or the mean of those of accumulate_steps batches; over its global norm / clip_norm if that is above 1
        g      + N(0, noise / (1 + step)^noise_decay) on every number (Neelakantan et al. 2015, arXiv:1511.06807); after the
               clipping, because otherwise the clipped gradient of a large model would be nearly all noise
        u      rule(g), weight decay included
        w      w - learning_rate(step) * u

    All of it, moments and accumulated gradients included, is in float32 or wider, whatever the parameters' dtype.

    `update(gradient, state, parameters, value=loss)`; the loss is only for `skip_nonfinite`. With gradient accumulation also
    weight=tokens and step=n.

    With skip_limit all of it is inside `skip_nonfinite`, except the learning rate, which follows the steps of the run. The noise of
    a skipped step is drawn again for the next one.

    With gradient accumulation a skipped batch is not part of any update. Skipping and learning rate count steps, that is batches;
    clipping, noise, moments and weight decay act once per update. An update has the learning rate of the step at which it is made,
    which does not grow with the number of batches.

    Args:
      settings: the section `optimizer`.
      steps: length of the run, where schedules end.
      parameters: the model's, values or abstract, with their metadata.
      seed: of the noise; the key of each step is kept in the state.
      learning_rate: instead of that of the settings; a scalar that may be traced. None: that of the settings.
      weight_decay: instead of that of the rule, likewise.
    """
    rule = update_rules.registry.create(settings.rule)
    if weight_decay is not None and isinstance(rule, update_rules.UpdateRule):
        rule = rule.model_copy(update={"weight_decay": weight_decay})
    parts = [rule.transformation(parameters)]
    if settings.noise:  # a separate key, which nothing else uses
        key = zlib.crc32(f"gradient noise {seed}".encode())
        parts.insert(0, optax.add_noise(settings.noise, settings.noise_decay, key))
    if settings.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    direction = optax.chain(*parts)
    accumulation = gradient_accumulation.parse_accumulate_steps(settings.accumulate_steps)
    if not accumulation.trivial:
        direction = gradient_accumulation.accumulate_gradients(direction, accumulation)
    if settings.skip_limit is not None:
        direction = skip_nonfinite(direction, settings.skip_spikes)
    return wide_updates(optax.chain(direction, optax.scale_by_learning_rate(make_schedule(settings, steps, learning_rate))))


def make_schedule(settings: config.Optimizer, steps: int, learning_rate: float | Array | None = None) -> optax.Schedule:
    """The learning rate by step, in a run of `steps` steps; `learning_rate` as in `make_optimizer`."""
    schedule = schedules.registry.create(settings.schedule)
    if learning_rate is None or not isinstance(schedule, schedules.Schedule):  # a user's function may compare its number
        learning_rate = settings.learning_rate
    return schedule.schedule(learning_rate, steps)
