"""Hyperparameters: the numbers of an experiment that compiled programs take as arguments, not as constants.

Experiments that differ in nothing else share their programs (programs.py), so a grid of learning rates, weight decays and seeds is
compiled once.
"""

import json
from typing import Any, NamedTuple

from jax import Array

from seqzoo import config
from seqzoo.specs import parse
from seqzoo.tasks.base import Task
from seqzoo.tasks.epochs import hashed
from seqzoo.training.optim import schedules, update_rules

SEED_BITS = 2**31 - 1  # of a seed

# Settings that only the host reads: no program depends on them.
HOST_ONLY = config.NUMERICALLY_NEUTRAL | {"training.eval_every", "training.stop_above", "training.vary_data"}


class Hyperparameters(NamedTuple):
    """Python numbers, or scalars inside a program."""

    learning_rate: float | Array
    """optimizer.learning_rate."""
    weight_decay: float | Array
    """That of optimizer.rule; 0 if the rule has none."""
    seed: int | Array
    """training.seed, of the initial parameters and of dropout."""
    train_seed: int | Array
    """Seed of the training examples: that of the task, with training.vary_data hashed with training.seed."""
    eval_seed: int | Array
    """Seed of the evaluation examples: that of the task."""


def hyperparameters(experiment: config.Experiment, task: Task) -> Hyperparameters:
    """Those of an experiment."""
    rule = update_rules.registry.create(experiment.optimizer.rule)
    seed = experiment.training.seed
    of_task = getattr(task, "seed", 0)
    return Hyperparameters(
        learning_rate=experiment.optimizer.learning_rate,
        weight_decay=rule.weight_decay if isinstance(rule, update_rules.UpdateRule) else 0.0,
        seed=seed,
        train_seed=hashed(of_task, seed) & SEED_BITS if experiment.training.vary_data else of_task,
        eval_seed=of_task,
    )


def shared_key(experiment: config.Experiment) -> str:
    """A text that is equal for experiments that share their programs, in processes with the same devices.

    A learning rate that a schedule of the user's own gets, the weight decay of such a rule, the seed of gradient noise, and the
    seed of a task whose `batch` does not take a traced one stay constants, and are part of the key.
    """
    held = config.settings(experiment)
    held = {path: value for path, value in held.items() if path not in HOST_ONLY and not path.startswith("run.")}
    if isinstance(schedules.registry.create(experiment.optimizer.schedule), schedules.Schedule):
        del held["optimizer.learning_rate"]
    if isinstance(update_rules.registry.create(experiment.optimizer.rule), update_rules.UpdateRule):
        held["optimizer.rule"] = _without(experiment.optimizer.rule, "weight_decay")
    if not experiment.optimizer.noise:
        del held["training.seed"]
    if _takes_traced_seed(experiment.task):
        held["task"] = _without(experiment.task, "seed")
    return json.dumps(held, sort_keys=True, default=str)


def _takes_traced_seed(spec: str) -> bool:
    from seqzoo import tasks

    return tasks.registry.create(spec).traced_seed


def _without(spec: str, setting: str) -> Any:
    """A spec without one of its settings, for comparison."""
    name, settings = parse(spec)
    return [name, sorted((key, repr(value)) for key, value in settings if key != setting)]
