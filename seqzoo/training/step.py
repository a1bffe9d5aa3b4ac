"""One training step and one evaluation batch, each a jitted function of arrays."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding

from seqzoo.model import ModelState
from seqzoo.tasks.base import EvalSet
from seqzoo.training import input_pipeline, module_norms
from seqzoo.training.loss import TokenLosses, token_losses
from seqzoo.training.optim.gradient_accumulation import accumulation_metrics, over_micro_batches
from seqzoo.training.optim.optimizer import make_schedule
from seqzoo.training.optim.skip_nonfinite import skip_counts
from seqzoo.training.state import State, TrainSetup

Batch = dict[str, Array]
Sums = dict[str, Array]  # "loss", "correct" and "weight", summed over tokens, float32 scalars


def score(
    setup: TrainSetup, parameters: dict, batch: Batch, carry: ModelState | None = None, key: Array | None = None
) -> tuple[TokenLosses, ModelState | None]:
    """What the model says of every token of a batch, and its state behind it (None if it had none before)."""
    side = {name: batch[name] for name in ("segment_ids", "positions") if name in batch}
    model = setup.model(parameters)
    x, carry = model.hidden(batch["tokens"], state=carry, key=key, **side)
    return token_losses(model.attend, x, batch["targets"], setup.experiment.training.loss_chunk), carry


def sums(batch: Batch, found: TokenLosses) -> Sums:
    """Weighted sums over the tokens of a batch: cross-entropy in nats, hits, and the weights themselves."""
    weights = batch["weights"].astype(found.cross_entropy.dtype)
    return {"loss": jnp.sum(weights * found.cross_entropy), "correct": jnp.sum(weights * found.correct), "weight": jnp.sum(weights)}


def train_step(setup: TrainSetup) -> Callable[..., tuple[State, dict[str, Array]]]:
    """(state, spec, batch=None) -> (state after one step, metrics). The state is donated; each spec compiles once.

    Without a batch the task makes it on the devices, of the seed and the step. loss = sum(w ce) / sum(w), accuracy likewise, over
    all micro-batches together; a batch without any weight has loss 0. With training.module_norms the metrics have "watched": norms
    by module, of the gradient and of the parameters it was taken at.
    """
    settings = setup.experiment
    rate = make_schedule(settings.optimizer, settings.training.steps)
    replicated = NamedSharding(setup.mesh, jax.P())

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0, out_shardings=(setup.shardings, replicated))
    def step(state, spec, batch=None):
        batch = input_pipeline.on_device(setup, spec, state["step"]) if batch is None else batch
        key = jax.random.fold_in(state["rng"], state["step"])
        gradient, metrics, carry = gradients(setup, state["params"], batch, state.get("carry"), key)
        about = {"value": metrics["loss"], "weight": jnp.sum(batch["weights"]), "step": state["step"]}
        updates, opt_state = setup.tx.update(gradient, state["opt_state"], state["params"], **about)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": rate(state["step"])}
        metrics |= accumulation_metrics(state["opt_state"], opt_state)
        if settings.training.module_norms:
            metrics["watched"] = {
                "gradient_norms": module_norms.norms(gradient),
                "parameter_norms": module_norms.norms(state["params"]),
            }
        if settings.optimizer.skip_limit is not None:
            metrics["skipped"], metrics["skipped_in_a_row"] = skip_counts(opt_state)
            if carry is not None:  # what a step that is left out found may hold what is not finite
                carry = optax.tree.where(metrics["skipped_in_a_row"] == 0, carry, state["carry"])
        parameters = optax.apply_updates(state["params"], updates)
        after = {"params": parameters, "opt_state": opt_state, "step": state["step"] + 1, "rng": state["rng"]}
        if carry is not None:
            after["carry"] = carry
        if "ema" in state:  # by steps, not updates: its horizon in tokens stays as batches grow (Busbridge et al. 2023, 2307.13813)
            after["ema"] = optax.incremental_update(parameters, state["ema"], 1 - settings.training.ema)
        return after, metrics

    return step


def gradients(setup: TrainSetup, parameters: dict, batch: Batch, carry: ModelState | None, key: Array):
    """(gradient of the loss, {"loss", "accuracy"}, carry) of a batch, in micro-batches one after the other.

    Every micro-batch's sums are divided by the whole batch's weight, so that the result is that of the whole batch at once however
    the weights lie. The carry has no gradient: back-propagation ends where the batch begins.
    """
    settings = setup.experiment.training
    weight = jnp.sum(batch["weights"])
    weight = jnp.where(weight == 0, 1, weight)

    def loss(parameters, batch, carry, key):
        found, carry = score(setup, parameters, batch, carry, key)
        total = sums(batch, found)
        means = {"loss": total["loss"] / weight, "accuracy": total["correct"] / weight}
        if not settings.z_loss:
            return means["loss"], (means, carry)
        means["z_loss"] = settings.z_loss * jnp.sum(batch["weights"] * found.log_z**2) / weight
        return means["loss"] + means["z_loss"], (means, carry)

    def value_and_gradient(batch, carry, key):
        (_, (means, carry)), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, batch, carry, key)
        return (gradient, means), carry

    if settings.micro_batches == 1:
        (gradient, means), carry = value_and_gradient(batch, carry, key)
    else:
        axes = None if carry is None else carry.row_axes()
        (gradient, means), carry = over_micro_batches(value_and_gradient, settings.micro_batches, batch, carry, axes, key)
    return gradient, means, carry


def evaluator(setup: TrainSetup) -> Callable[..., dict[str, dict[str, Any]]]:
    """evaluate(parameters, stop=lambda: False) -> {eval set: numbers}, or None if `stop()` came true between batches.

    The numbers are those of `_numbers`. Batches are made by one function per evaluation set and measured by one per shape, so
    evaluation sets of equal shape share a compilation.
    """
    replicated = NamedSharding(setup.mesh, jax.P())

    @functools.partial(jax.jit, out_shardings=replicated)
    def measure(parameters, batch):
        found, _ = score(setup, parameters, batch)
        weights = batch["weights"].astype(found.cross_entropy.dtype)
        by_position = {"loss": jnp.sum(weights * found.cross_entropy, axis=0), "weight": jnp.sum(weights, axis=0)}
        return sums(batch, found), by_position

    batches = input_pipeline.eval_batches(setup)
    add = jax.jit(functools.partial(jax.tree.map, jnp.add), out_shardings=replicated, donate_argnums=0)

    def evaluate(parameters, stop=lambda: False):
        totals = {}
        for part in setup.task.eval_sets():
            total = None
            for batch in batches(part):
                if stop():
                    return None
                found = measure(parameters, batch)
                total = found if total is None else add(total, found)
            totals[part.name] = total  # read below: the devices need not wait for the host between evaluation sets
        return {part.name: _numbers(part, *jax.device_get(totals[part.name])) for part in setup.task.eval_sets()}

    return evaluate


def _numbers(part: EvalSet, total: dict[str, Any], by_position: dict[str, Any]) -> dict[str, Any]:
    """{"loss", "accuracy"}; of text also "bits_per_byte", and "position_loss": {"from": [...], "loss": [...]}, octave by octave."""
    weight = float(total["weight"]) or 1.0
    numbers = {"loss": float(total["loss"]) / weight, "accuracy": float(total["correct"]) / weight}
    if part.bytes_per_target is None:
        return numbers
    starts = [0, *(2**i for i in range(math.ceil(math.log2(max(part.spec.length, 2)))))]
    loss, weights = (np.add.reduceat(by_position[name], starts) for name in ("loss", "weight"))
    numbers["bits_per_byte"] = numbers["loss"] / math.log(2) / part.bytes_per_target
    numbers["position_loss"] = {"from": starts, "loss": [float(a / b) if b else None for a, b in zip(loss, weights, strict=True)]}
    return numbers
