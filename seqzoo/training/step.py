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
from jax.stages import Wrapped

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
    """Losses of every token of a batch, and the model's state after it (None if it had none before)."""
    side = {name: batch[name] for name in ("segment_ids", "positions") if name in batch}
    model = setup.model(parameters)
    x, carry = model.hidden(batch["tokens"], state=carry, key=key, **side)
    return token_losses(model.attend_rows, x, batch["targets"], setup.experiment.training.loss_chunk), carry


def sums(batch: Batch, found: TokenLosses) -> Sums:
    """Weighted sums over the tokens of a batch: cross-entropy in nats, hits, and the weights themselves."""
    weighed = lambda values: jnp.sum(weigh(batch, values))
    one = jnp.ones_like(found.cross_entropy)
    return {"loss": weighed(found.cross_entropy), "correct": weighed(found.correct.astype(one.dtype)), "weight": weighed(one)}


def weigh(batch: Batch, values: Array) -> Array:
    """values [b, t] times the weights; exactly 0 where the weight is 0, whatever the value: 0 inf would be NaN."""
    weights = batch["weights"].astype(values.dtype)
    return jnp.where(weights == 0, jnp.zeros_like(values), weights * values)


def train_step(setup: TrainSetup) -> Wrapped:
    """The jitted `step_function`. The state is donated; each spec compiles once."""
    out = (setup.shardings, NamedSharding(setup.mesh, jax.P()))
    return jax.jit(step_function(setup), static_argnums=1, donate_argnums=0, out_shardings=out)


def step_function(setup: TrainSetup) -> Callable[..., tuple[State, dict[str, Any]]]:
    """The training step, (state, spec, batch=None, hyperparameters=None) -> (next state, metrics).

    The hyperparameters are arguments, so that a step serves every run that differs in nothing else; None: those of the experiment,
    as constants. Without a batch the task makes it on the devices, from the seed and the step. loss = sum(w ce) / sum(w), accuracy
    likewise, over all micro-batches together; a batch without any weight has loss 0. With training.module_norms the metrics have
    "module_norms": norms by module, of the gradient and of the parameters it was taken at.
    """
    settings = setup.experiment

    def step(state, spec, batch=None, hyperparameters=None):
        chosen = hyperparameters or setup.hyperparameters
        rate = make_schedule(settings.optimizer, settings.training.steps, chosen.learning_rate)
        tx = setup.optimizer(chosen)
        batch = input_pipeline.on_device(setup, spec, state["step"], chosen.train_seed) if batch is None else batch
        key = jax.random.fold_in(state["rng"], state["step"])
        metrics: dict[str, Any]
        gradient, metrics, carry = gradients(setup, state["params"], batch, state.get("carry"), key)
        about = {"value": metrics["loss"], "weight": jnp.sum(batch["weights"]), "step": state["step"]}
        updates, opt_state = tx.update(gradient, state["opt_state"], state["params"], **about)
        metrics |= {"gradient_norm": optax.tree.norm(gradient), "learning_rate": rate(state["step"])}
        metrics |= accumulation_metrics(state["opt_state"], opt_state)
        if settings.training.module_norms:
            metrics["module_norms"] = {
                "gradient_norms": module_norms.norms(gradient),
                "parameter_norms": module_norms.norms(state["params"]),
            }
        if settings.optimizer.skip_limit is not None:
            metrics["skipped"], metrics["skipped_in_a_row"] = skip_counts(opt_state)
            if carry is not None:  # the state of a skipped step may contain NaN or inf
                carry = optax.tree.where(metrics["skipped_in_a_row"] == 0, carry, state["carry"])
        parameters = optax.apply_updates(state["params"], updates)
        after = {"params": parameters, "opt_state": opt_state, "step": state["step"] + 1, "rng": state["rng"]}
        if carry is not None:
            after["carry"] = carry
        # The average counts steps, not updates, so its horizon in tokens is constant (Busbridge et al. 2023, 2307.13813).
        if settings.training.ema is not None:
            wide = jax.tree.map(lambda parameter, mean: parameter.astype(mean.dtype), parameters, state["ema"])
            after["ema"] = optax.incremental_update(wide, state["ema"], 1 - settings.training.ema)
        return after, metrics

    return step


def gradients(
    setup: TrainSetup, parameters: dict, batch: Batch, carry: ModelState | None, key: Array
) -> tuple[dict, dict[str, Array], ModelState | None]:
    """(gradient of the loss, {"loss", "accuracy"}, carry) of a batch; gradient accumulation over training.micro_batches.

    Every micro-batch's sums are divided by the whole batch's weight, so that the result is that of the whole batch at once however
    the weights are distributed. The carry has no gradient: back-propagation through time is truncated at the start of the batch.
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
        means["z_loss"] = settings.z_loss * jnp.sum(weigh(batch, found.log_z**2)) / weight
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


def evaluator(setup: TrainSetup) -> Callable[..., dict[str, dict[str, Any]] | None]:
    """The evaluation, (parameters, eval_sets, stop=lambda: False, seed=None) -> {eval set: numbers}, or None if `stop()` came true
    between batches; `seed` is that of the examples, None: the experiment's.

    The numbers are those of `_numbers`. Batches are made by one function per evaluation set and scored by one per shape, so that
    evaluation sets of equal shape share a compilation.
    """
    replicated = NamedSharding(setup.mesh, jax.P())

    @functools.partial(jax.jit, out_shardings=replicated)
    def score_batch(parameters, batch):
        found, _ = score(setup, parameters, batch)
        weighed = lambda values: jnp.sum(weigh(batch, values), axis=0)
        by_position = {"loss": weighed(found.cross_entropy), "weight": weighed(jnp.ones_like(found.cross_entropy))}
        return sums(batch, found), by_position

    batches = input_pipeline.eval_batches(setup)
    add = jax.jit(functools.partial(jax.tree.map, jnp.add), out_shardings=replicated, donate_argnums=0)

    def evaluate(parameters, eval_sets, stop=lambda: False, seed=None):
        seed = setup.hyperparameters.eval_seed if seed is None else seed
        totals = {}
        for part in eval_sets:
            total = None
            for batch in batches(part, seed):
                if stop():
                    return None
                found = score_batch(parameters, batch)
                total = found if total is None else add(total, found)
            totals[part.name] = total  # read after the last set, so that the devices never wait for the host
        return {part.name: _numbers(part, *jax.device_get(totals[part.name])) for part in eval_sets}

    return evaluate


def _numbers(part: EvalSet, total: dict[str, Any], by_position: dict[str, Any]) -> dict[str, Any]:
    """{"loss", "accuracy"}; for text also "bits_per_byte", and "position_loss": {"from": [...], "loss": [...]}, by octave."""
    weight = float(total["weight"]) or 1.0
    numbers: dict[str, Any] = {"loss": float(total["loss"]) / weight, "accuracy": float(total["correct"]) / weight}
    if part.bytes_per_target is None:
        return numbers
    starts = [0, *(2**i for i in range(math.ceil(math.log2(max(part.spec.length, 2)))))]
    loss, weights = (np.add.reduceat(by_position[name], starts) for name in ("loss", "weight"))
    numbers["bits_per_byte"] = numbers["loss"] / math.log(2) / part.bytes_per_target
    numbers["position_loss"] = {"from": starts, "loss": [float(a / b) if b else None for a, b in zip(loss, weights, strict=True)]}
    return numbers
