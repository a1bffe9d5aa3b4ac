"""One training step and one evaluation batch, each a jitted function of arrays."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding

from seqzoo import sharding
from seqzoo.tasks.base import BatchSpec
from seqzoo.training import optimizer
from seqzoo.training.state import Plan, State

Sums = dict[str, Array]  # "loss", "correct" and "weight", summed over tokens, float32 scalars


def sums(plan: Plan, parameters: dict, batch: dict[str, Array], key: Array | None = None) -> Sums:
    """Weighted sums over the tokens of a batch: cross-entropy in nats, hits, and the weights themselves."""
    side = {name: batch[name] for name in ("segment_ids", "positions") if name in batch}
    logits, _ = plan.model(parameters)(batch["tokens"], key=key, **side)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    hits = jnp.argmax(logits, axis=-1) == batch["targets"]
    weights = batch["weights"].astype(entropy.dtype)
    return {"loss": jnp.sum(weights * entropy), "correct": jnp.sum(weights * hits), "weight": jnp.sum(weights)}


def make_batch(plan: Plan, spec: BatchSpec, index: Array) -> dict[str, Array]:
    """The task's batch, its rows spread over the data axes."""
    sharding.check_batch(plan.mesh, spec.batch, spec.length, f"task {plan.experiment.task}, {spec}")
    return jax.lax.with_sharding_constraint(plan.task.batch(spec, index), sharding.batch_sharding(plan.mesh))


def train_step(plan: Plan) -> Callable[[State, BatchSpec], tuple[State, dict[str, Array]]]:
    """(state, spec) -> (state after one step, metrics). The state is donated; each spec compiles once.

    The batch is a function of the seed and the step, made on the devices. loss = sum(w ce) / sum(w), accuracy likewise; a batch
    without any weight has loss 0.
    """
    settings = plan.experiment
    rate = optimizer.schedule(settings.optimizer, settings.training.steps)
    replicated = NamedSharding(plan.mesh, jax.P())

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0, out_shardings=(plan.shardings, replicated))
    def step(state, spec):
        batch = make_batch(plan, spec, state["step"])
        key = jax.random.fold_in(state["rng"], state["step"])

        def loss(parameters):
            total = sums(plan, parameters, batch, key)
            weight = jnp.where(total["weight"] == 0, 1, total["weight"])
            return total["loss"] / weight, total["correct"] / weight

        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"])
        updates, opt_state = plan.tx.update(gradient, state["opt_state"], state["params"])
        metrics = {
            "loss": value,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate(state["step"]),
        }
        return {
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "rng": state["rng"],
        }, metrics

    return step


def evaluator(plan: Plan) -> Callable[..., dict[str, dict[str, float]]]:
    """evaluate(parameters, stop=lambda: False) -> {slice: {"loss", "accuracy"}}, or None if `stop()` came true between batches.

    Batches are made by one function per slice and measured by one per shape, so slices of equal shape share a compilation.
    """
    replicated = NamedSharding(plan.mesh, jax.P())
    make = jax.jit(functools.partial(make_batch, plan), static_argnums=0, out_shardings=sharding.batch_sharding(plan.mesh))

    @functools.partial(jax.jit, out_shardings=replicated)
    def measure(parameters, batch, so_far):
        return jax.tree.map(jnp.add, so_far, sums(plan, parameters, batch))

    zero = {name: jnp.zeros((), jnp.float32) for name in ("loss", "correct", "weight")}

    def evaluate(parameters, stop=lambda: False):
        totals = {}
        for part in plan.task.slices():
            total = jax.device_put(zero, replicated)
            for index in range(part.batches):
                if stop():
                    return None
                total = measure(parameters, make(part.spec, jnp.int32(index)), total)
            totals[part.name] = total  # read below: the devices need not wait for the host between slices
        return {name: _means(total) for name, total in totals.items()}

    return evaluate


def _means(total: Sums) -> dict[str, float]:
    loss, correct, weight = (float(total[name]) for name in ("loss", "correct", "weight"))
    return {"loss": loss / (weight or 1), "accuracy": correct / (weight or 1)}
