"""The state, its shardings, and one step of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers.collectives import moved
from helpers.tiny import tiny
from helpers.tolerances import assert_close
from seqzoo import tasks, training
from seqzoo.model import params, sharding
from seqzoo.model.sharding import RULES, ShardingError
from seqzoo.training import input_pipeline, step

SHARDED = dict(mesh__replica=2, mesh__fsdp=4)


class Layer(nnx.Module):
    """A matrix, a marked matrix, a vector."""

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.ones((4, 6)), axes=("embed", "heads"))
        self.a = nnx.Param(jnp.ones((4, 6)), axes=("embed", None), decay=False)
        self.scale = nnx.Param(jnp.ones((4,)), axes=("embed",))


class Layers(nnx.Module):
    """Three stacked layers and one alone."""

    def __init__(self):
        self.stack = jax.vmap(lambda key: Layer(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 3))
        self.one = Layer(nnx.Rngs(0))


def mesh(**sizes):
    return sharding.make_mesh({"replica": 1, "fsdp": 1, "seq": 1, "tensor": 1, **sizes}, RULES)


def test_adams_moments_are_sharded_like_their_parameters_before_and_after_a_step():
    setup = training.prepare(tiny(**SHARDED))
    state = training.initialise(setup)
    with jax.set_mesh(setup.mesh):
        after, _ = training.train_step(setup)(state, setup.task.spec(0))
    for s in (setup.abstract, after):
        adam = next(x for x in jax.tree.leaves(s["opt_state"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
        for moments in (adam.mu, adam.nu):
            jax.tree.map(lambda p, m: np.testing.assert_equal(p.sharding.spec, m.sharding.spec), s["params"], moments)
    assert after["params"]["embedding"].sharding.spec == jax.P("tensor", "fsdp")
    shards = {shard.data.shape for shard in adam.mu["embedding"].addressable_shards}
    assert shards == {(32, 16 // 4)}, f"a device holds {shards} of the moment of a [32, 16] embedding"


def test_a_step_compiles_once_per_spec_and_donates_its_state():
    setup = training.prepare(
        tiny(model__depth=1, task="mqar(vocab_size=32, length=(8, 16), pairs=(1, 2), batch_size=8, eval_pairs=1, eval_length=8)")
    )
    state, run = training.initialise(setup), training.train_step(setup)
    specs = sorted({setup.task.spec(i) for i in range(50)})
    assert len(specs) == 2
    with jax.set_mesh(setup.mesh):
        for _ in range(2):
            for spec in specs:
                before, (state, _) = state, run(state, spec)
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before["params"]))
    assert run._cache_size() == 2 and int(state["step"]) == 4


def test_loss_and_accuracy_are_weighted_means_over_tokens():
    setup = training.prepare(tiny())
    state = training.initialise(setup)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 32, (8, 16)).astype(np.int32),
        "targets": rng.integers(0, 32, (8, 16)).astype(np.int32),
        "weights": rng.uniform(0, 2, (8, 16)).astype(np.float32),
    }
    logits = np.asarray(setup.model(state["params"])(batch["tokens"])[0], np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
    hits = logits.argmax(-1) == batch["targets"]
    w = batch["weights"].astype(np.float64)
    wanted = {"loss": (w * entropy).sum(), "correct": (w * hits).sum(), "weight": w.sum()}
    assert_close(step.sums(batch, step.score(setup, state["params"], batch)[0]), wanted)


def test_a_target_of_weight_0_is_in_no_sum_whatever_its_loss_is():
    """Not even an infinite one, of a target whose logit is -inf, or NaN: 0 inf and 0 NaN are NaN."""
    losses = jnp.asarray([[1.0, np.inf, np.nan, 2.0]])
    batch = {"weights": jnp.asarray([[1.0, 0.0, 0.0, 0.5]])}
    total = step.sums(batch, step.TokenLosses(losses, losses > 1.5, losses))
    assert jax.tree.map(float, total) == {"loss": 2.0, "correct": 0.5, "weight": 1.5}
    gradient = jax.grad(lambda losses: step.sums(batch, step.TokenLosses(losses, losses > 0, losses**2))["loss"])(losses)
    assert gradient.tolist() == [[1.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    "eight",
    [
        dict(fsdp=2, seq=2, tensor=2),
        *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in (dict(replica=2, fsdp=4), dict(seq=8))),
    ],
    ids=str,
)
def test_the_same_numbers_come_out_on_one_device_and_on_eight(eight, capfd):
    """And XLA finds a way from every layout to the next without gathering whole arrays, or it would say so."""
    losses = {}
    for name, sizes in {"one": {}, "eight": {f"mesh__{axis}": size for axis, size in eight.items()}}.items():
        setup = training.prepare(tiny(**{**SHARDED, "mesh__replica": 1, "mesh__fsdp": 1, **sizes}))
        with jax.set_mesh(setup.mesh):
            state, run = training.initialise(setup), training.train_step(setup)
            losses[name] = []
            for i in range(3):
                state, metrics = run(state, setup.task.spec(i))
                losses[name].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["eight"], losses["one"], rtol=1e-4)
    assert "Involuntary" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["gla(heads=2)", "mamba", "mamba2(head_dim=16)"])
def test_with_time_sharded_communication_does_not_grow_with_the_row(layers):
    """Devices exchange gradients of parameters and states of layers, never activations."""
    totals = []
    for length in (64, 128):
        task = f"mqar(vocab_size=256, length={length}, pairs=2, batch_size=8, eval_pairs=2)"
        setup = training.prepare(tiny(task=task, model__layers=(layers,), model__channel="swiglu", mesh__seq=8))
        with jax.set_mesh(setup.mesh):
            totals.append(moved(training.train_step(setup).lower(setup.abstract, setup.task.spec(0)).compile()))
    assert totals[0] == totals[1]


def test_a_batch_that_does_not_divide_is_refused_by_name():
    with pytest.raises(ShardingError, match=r"training: 6 rows do not divide over mesh\.replica=2 \* mesh\.fsdp=2, 4 devices"):
        training.prepare(tiny(task="mqar(vocab_size=32, length=16, pairs=2, batch_size=6)", mesh__replica=2, mesh__fsdp=2))
    with pytest.raises(ShardingError, match=r"evaluation 'pairs=2': 6 rows"):
        training.prepare(tiny(task="mqar(vocab_size=32, length=16, pairs=2, batch_size=8, eval_batch_size=6)", mesh__replica=4))


def test_a_row_that_does_not_divide_over_time_is_refused_by_name():
    with pytest.raises(ShardingError, match=r"training: 18 tokens do not divide over mesh\.seq=4, 4 devices"):
        training.prepare(tiny(task="mqar(vocab_size=32, length=18, pairs=2, batch_size=4)", mesh__seq=4))


def test_a_parameter_that_does_not_divide_is_refused_by_name_axis_and_size():
    with pytest.raises(ShardingError, match=r"parameter embedding: its axis 'embed' of size 12 does not divide over mesh\.fsdp=8"):
        training.prepare(tiny(model__d_model=12, mesh__fsdp=8))


def test_stacked_layers_get_a_leading_axis_that_is_not_split():
    _, state = params.split(Layers())
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(mesh(fsdp=2), state, RULES))
    assert specs["stack"]["w"] == jax.P(None, "fsdp", "tensor") and specs["one"]["w"] == jax.P("fsdp", "tensor")


def test_weight_decay_acts_on_matrices_that_are_not_marked_stacked_or_not():
    _, state = params.split(Layers())
    wanted = {"w": True, "a": False, "scale": False}
    assert params.decay_mask(state) == {"stack": wanted, "one": wanted}


def test_a_mesh_takes_the_remaining_devices_and_reports_sizes_that_do_not_fit():
    assert dict(mesh(fsdp=-1, replica=2).shape) == {"replica": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh(fsdp=-1).axis_types)
    with pytest.raises(ShardingError, match="3 does not divide 8"):
        mesh(replica=3, fsdp=-1)
    with pytest.raises(ShardingError, match="needs 16 devices, there are 8"):
        mesh(fsdp=16)
    with pytest.raises(ShardingError, match=r"mesh\.tensor=2: nothing is split over it"):
        sharding.make_mesh({"replica": 1, "fsdp": 1, "seq": 1, "tensor": 2}, dict.fromkeys(RULES))


def test_a_parameter_without_axes_or_with_an_unknown_one_is_refused_by_name():
    class Bare(nnx.Module):
        def __init__(self, axes):
            self.w = nnx.Param(jnp.ones((4, 6))) if axes is None else nnx.Param(jnp.ones((4, 6)), axes=axes)

    with pytest.raises(ValueError, match=r"parameter w of shape \(4, 6\) has axes=None"):
        params.decay_mask(params.split(Bare(None))[1])
    with pytest.raises(ShardingError, match="parameter w: no rule for its axis 'width'"):
        sharding.param_shardings(mesh(), params.split(Bare(("embed", "width")))[1], RULES)
    with pytest.raises(ShardingError, match="put two of its axes"):
        sharding.param_shardings(mesh(fsdp=2), params.split(Bare(("embed", "heads")))[1], RULES | {"heads": "fsdp"})


def test_an_array_that_is_no_parameter_is_refused():
    class Constant(nnx.Module):
        def __init__(self):
            self.c = nnx.Variable(jnp.ones(3))

    with pytest.raises(TypeError, match=r"c is a Variable, wanted an nnx\.Param"):
        params.split(Constant())


def test_positions_that_are_too_few_for_the_task_are_refused():
    with pytest.raises(ValueError, match=r"model\.learned_positions=8, but the task's rows are up to 16 tokens"):
        training.prepare(tiny(model__learned_positions=8))


def test_every_batch_spec_is_hashable_and_evaluation_sets_have_different_names():
    task = tasks.registry.create(tiny().task)
    names = [part.name for part in task.eval_sets()]
    assert len(set(names)) == len(names) and hash(task.spec(0)) == hash(task.spec(0))


def test_models_share_the_compiled_batches_of_equal_evaluation_sets():
    """For MQAR their compilation takes as long as that of a small model's step."""
    input_pipeline._maker.cache_clear()
    other = [{"task": f"{tiny().task[:-1]}, {setting})"} for setting in ("seed=1", "noise=True")]
    for changed in ({}, {"model__d_model": 32}, *other):
        input_pipeline.eval_batches(training.prepare(tiny(**changed)))
    assert input_pipeline._maker.cache_info()[:2] == (2, 2), "hits: another width, another seed; misses: the first, other examples"
