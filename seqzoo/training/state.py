"""From an experiment to a training state: a plain dict with a sharding for every leaf.

It always has "params", "opt_state", "step" and "rng"; with training.ema also "ema", the exponential moving average of the
parameters; and for tasks whose rows continue from batch to batch also "carry", the model's own state at the end of the last batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.stages import Wrapped

from seqzoo import config, tasks
from seqzoo.model import LanguageModel, ModelState, params, sharding
from seqzoo.tasks.base import BatchSpec, Task
from seqzoo.training import memory
from seqzoo.training.hyperparameters import Hyperparameters, hyperparameters
from seqzoo.training.optim.optimizer import make_optimizer
from seqzoo.training.optim.sharding import optimizer_state_shardings
from seqzoo.training.run.data_record import Sizes

State = dict[str, Any]

SPECS_CHECKED = 1000  # steps whose batches are checked before the start; later ones are checked when their step is traced


class TrainSetup(NamedTuple):
    """The experiment, built but without arrays: task, mesh, model, optimizer, and the shape and sharding of the state."""

    experiment: config.Experiment
    task: Task
    mesh: Mesh
    graphdef: nnx.GraphDef
    parameters: nnx.State  # abstract, with metadata
    abstract: State  # jax.ShapeDtypeStruct with shardings

    @property
    def shardings(self) -> State:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def model(self, parameters: dict) -> LanguageModel:
        """The model with these parameters, a plain nested dict."""
        return nnx.merge(self.graphdef, parameters)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those of the experiment."""
        return hyperparameters(self.experiment, self.task)

    @property
    def train_task(self) -> Task:
        """The task with the seed of the training examples."""
        seed = self.hyperparameters.train_seed
        return self.task if seed == getattr(self.task, "seed", seed) else self.task.with_seed(seed)

    def optimizer(self, chosen: Hyperparameters) -> optax.GradientTransformationExtraArgs:
        """The optimizer with these hyperparameters, which may be traced."""
        return _optimizer(self.experiment, self.parameters, chosen)


def build(settings: config.Model, task: Task | Sizes, key: Array) -> LanguageModel:
    """The network for a task, or for the sizes that a run recorded of it."""
    return LanguageModel(task.vocab_size, **settings.model_dump(exclude={"init_from"}), rngs=nnx.Rngs(key))


def prepare(experiment: config.Experiment, sizes: Sizes | None = None) -> TrainSetup:
    """Checks an experiment against task, model and devices, and gives its state shapes and shardings. Allocates and writes nothing.

    Args:
      experiment: task, model, optimizer and mesh.
      sizes: of a run whose data may be gone: then no data is read, and batches are not checked.
    Raises:
      ValueError: what does not fit, by name: a mixer's settings, a size that does not divide, too few learned positions, more
        bytes than the devices have.
    """
    task = tasks.registry.create(experiment.task)
    settings = experiment.model
    if sizes is None:
        task.check()
    longest = (sizes or task).max_length
    if settings.learned_positions is not None and settings.learned_positions < longest:
        raise ValueError(
            f"model.learned_positions={settings.learned_positions}, but the task's rows are up to {longest} tokens long; "
            f"wanted at least that, or None"
        )
    if experiment.training.vary_data and "seed" not in type(task).model_fields:
        raise ValueError(f"training.vary_data=True, but {experiment.task} has no seed; wanted vary_data=False, or a task with one")
    for setting in ("stop_above", "patience"):
        value = getattr(experiment.training, setting)
        if sizes is None and value is not None and not task.eval_sets():
            raise ValueError(f"training.{setting}={value}, but {experiment.task} evaluates nothing; wanted None")
    mesh = sharding.make_mesh(experiment.mesh.sizes(), experiment.mesh.rules)
    if sizes is None:
        check_batches(experiment, task, mesh)
    graphdef, parameters = params.split(nnx.eval_shape(lambda: build(settings, sizes or task, jax.random.key(0))))
    chosen = hyperparameters(experiment, task)
    tx = _optimizer(experiment, parameters, chosen)

    replicated = NamedSharding(mesh, jax.P())
    by_parameter = sharding.param_shardings(mesh, parameters, experiment.mesh.rules)
    shapes = jax.eval_shape(lambda: _initial(experiment, task, tx, chosen.seed, sizes=sizes))
    by_moment = optimizer_state_shardings(tx, shapes["opt_state"], shapes["params"], by_parameter)
    shardings = {"params": by_parameter, "opt_state": by_moment, "step": replicated, "rng": replicated}
    if "ema" in shapes:
        shardings["ema"] = by_parameter
    if "carry" in shapes:
        rows = lambda axis: NamedSharding(mesh, jax.P(*[None] * axis, sharding.BATCH_AXES))
        shardings["carry"] = jax.tree.map(rows, shapes["carry"].row_axes())
    abstract = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)
    specs = batch_specs(experiment, task) if sizes is None else []
    memory.check(experiment, mesh, (sizes or task).vocab_size, abstract, specs)
    return TrainSetup(experiment, task, mesh, graphdef, parameters, abstract)


def batch_specs(experiment: config.Experiment, task: Task) -> list[tuple[BatchSpec, int]]:
    """The batches of training and evaluation, each once with the number of parts in which it is computed one after the other."""
    training = dict.fromkeys(task.spec(step) for step in range(min(experiment.training.steps, SPECS_CHECKED)))
    evaluation = (*task.eval_sets(), *task.test_sets())
    return [(spec, experiment.training.micro_batches) for spec in training] + [(part.spec, 1) for part in evaluation]


def check_batches(experiment: config.Experiment, task: Task, mesh: Mesh) -> None:
    """Raises ShardingError if a batch of training or evaluation does not divide into micro-batches and over devices."""
    count = experiment.training.micro_batches
    for spec in dict.fromkeys(task.spec(step) for step in range(min(experiment.training.steps, SPECS_CHECKED))):
        what = f"task {experiment.task}, training"
        if spec.batch % count:
            raise sharding.ShardingError(
                f"{what}: {spec.batch} rows do not divide into training.micro_batches={count} micro-batches"
            )
        micro = what if count == 1 else f"{what}, a micro-batch of training.micro_batches={count}"
        sharding.check_batch(mesh, spec.batch // count, spec.length, micro)
    for part in (*task.eval_sets(), *task.test_sets()):
        sharding.check_batch(mesh, part.spec.batch, part.spec.length, f"task {experiment.task}, evaluation {part.name!r}")


def initialise(setup: TrainSetup, loaded: dict[str, Any] | None = None) -> State:
    """The state before the first step, each leaf made on its devices; `loaded` is a part of the parameters, see `init_from`."""
    with jax.set_mesh(setup.mesh):
        return initialiser(setup)(setup.hyperparameters.seed, loaded or {})


def initialiser(setup: TrainSetup) -> Wrapped:
    """The jitted function (training.seed, loaded parameters) -> state before the first step. Call it with the mesh set."""
    tx = setup.optimizer(setup.hyperparameters)
    make = lambda seed, loaded: _initial(setup.experiment, setup.task, tx, seed, loaded)
    return jax.jit(make, out_shardings=setup.shardings)


def _optimizer(
    experiment: config.Experiment, parameters: nnx.State, chosen: Hyperparameters
) -> optax.GradientTransformationExtraArgs:
    return make_optimizer(
        experiment.optimizer,
        experiment.training.steps,
        parameters,
        experiment.training.seed,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
    )


def _initial(
    experiment: config.Experiment,
    task: Task,
    tx: optax.GradientTransformation,
    seed: int | Array,
    loaded: dict[str, Any] | None = None,
    sizes: Sizes | None = None,
) -> State:
    model_key, key = jax.random.split(jax.random.key(seed))
    model = build(experiment.model, sizes or task, model_key)
    parameters = _replaced(nnx.to_pure_dict(nnx.state(model, nnx.Param)), loaded or {})
    state = {"params": parameters, "opt_state": tx.init(parameters), "step": jnp.zeros((), jnp.int32), "rng": key}
    if experiment.training.ema is not None:
        # In float32 at least: a decay of 0.999 would round away most of what a bfloat16 average adds.
        state["ema"] = jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(jnp.float32, p.dtype)), parameters)
    if task.stateful:
        state["carry"] = _empty_carry(model, task.spec(0).batch)
    return state


def averaged(state: State) -> dict[str, Any]:
    """The parameters to evaluate and to use: their moving average if the run keeps one, in their own dtype."""
    if "ema" not in state:
        return state["params"]
    return jax.tree.map(lambda mean, parameter: mean.astype(parameter.dtype), state["ema"], state["params"])


def _replaced(tree: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The nested dict with the leaves of another that has some of its paths."""
    return {
        name: (_replaced(leaf, part[name]) if isinstance(leaf, dict) else part[name]) if name in part else leaf
        for name, leaf in tree.items()
    }


def _empty_carry(model: LanguageModel, rows: int) -> ModelState:
    try:
        return model.init_state(rows)
    except ValueError as error:
        raise ValueError(f"rows that continue from batch to batch need a state of fixed size: {error}") from error
