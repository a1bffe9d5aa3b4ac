"""Updates from several batches: they equal the update of all batches at once; schedules and the norm test choose their number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from helpers.tiny import quiet, stopping, tiny
from helpers.tolerances import assert_close
from seqzoo import training
from seqzoo.config import Optimizer
from seqzoo.training.optim import gradient_accumulation, skip_nonfinite
from seqzoo.training.optim.optimizer import make_optimizer

PLAIN = dict(schedule="constant(warmup_steps=0)", learning_rate=0.5)
SGD = dict(**PLAIN, rule="sgd(momentum=0.0, weight_decay=0.0)", clip_norm=None)


def made(settings, gradients, weights=None, losses=None):
    """Runs an optimizer over gradients of a [2, 3] matrix: [(updates, what its metrics say, its state)], a step each."""
    matrix = nnx.State({"w": nnx.Param(jnp.ones((2, 3)), axes=("embed", "heads"))})
    tx, values = make_optimizer(settings, 100, matrix), {"w": jnp.ones((2, 3), gradients[0].dtype)}
    state, update, found = jax.jit(tx.init)(values), jax.jit(tx.update), []
    for step, gradient in enumerate(gradients):
        about = dict(weight=jnp.asarray(1.0 if weights is None else weights[step], float), step=jnp.int32(step))
        before = state
        updates, state = update({"w": gradient}, state, values, value=1.0 if losses is None else losses[step], **about)
        values = optax.apply_updates(values, updates)
        said = {name: int(value) for name, value in gradient_accumulation.accumulation_metrics(before, state).items()}
        found.append((np.asarray(updates["w"]), said, state))
    return found


def updated(found):
    """The steps that made an update."""
    return [step for step, (_, said, _) in enumerate(found) if said["updated"]]


@pytest.mark.parametrize("settings", [SGD, dict(**PLAIN, clip_norm=1.0)], ids=["sgd", "adamw"])
def test_an_update_of_batches_of_uneven_weights_is_that_of_all_at_once(settings):
    """Two updates, so that moments count; between updates nothing changes."""
    weights, rng = np.array([3.0, 1.0, 0.0, 4.0, 2.0, 2.0, 9.0]), np.random.default_rng(0)
    gradients = rng.normal(size=(7, 2, 3)) * np.where(weights, 1, 0)[:, None, None]
    mean = lambda part: np.average(gradients[part], axis=0, weights=weights[part])
    with jax.enable_x64(True):
        found = made(Optimizer(**settings, accumulate_steps="3"), jnp.asarray(gradients), weights)
        wanted = made(Optimizer(**settings), jnp.asarray([mean(slice(4)), mean(slice(4, 7))]))
        assert found[0][0].dtype == np.float64 and updated(found) == [3, 6], "the batch without weight is none of three"
        for step in (0, 1, 2, 4, 5):
            assert not found[step][0].any()
        for step, (update, _, _) in zip((3, 6), wanted, strict=True):
            assert_close(found[step][0], update, tolerance=1e-12, what=f"step {step}")


def test_the_weight_of_a_batch_is_that_of_its_tokens():
    """Two batches of half the rows each, whose scored tokens are uneven, through the whole training step."""
    rng = np.random.default_rng(0)
    whole = {name: rng.integers(0, 32, (8, 16)).astype(np.int32) for name in ("tokens", "targets")}
    whole["weights"] = (rng.uniform(size=(8, 16)) < np.repeat([0.1, 0.9], 4)[:, None]).astype(np.float32)
    sgd = {f"optimizer__{name}": value for name, value in SGD.items()}
    after = {}
    for number, parts in {"1": [slice(8)], "2": [slice(4), slice(4, 8)]}.items():
        setup = training.prepare(tiny(**sgd, optimizer__accumulate_steps=number))
        with jax.set_mesh(setup.mesh):
            state, step = training.initialise(setup), training.train_step(setup)
            for rows in parts:
                state, metrics = step(state, setup.task.spec(0), {name: leaf[rows] for name, leaf in whole.items()})
        after[number] = state["params"]
    assert (int(metrics["accumulate_steps"]), int(metrics["updates"]), int(metrics["updated"])) == (2, 1, 1)
    assert_close(after["2"], after["1"])


def test_an_update_takes_the_number_of_batches_at_its_first_step():
    found = made(Optimizer(**SGD, accumulate_steps="0:1, 3:2, 6:3"), jnp.ones((10, 2, 3)))
    assert updated(found) == [0, 1, 2, 4, 6, 9]
    assert [said["accumulate_steps"] for _, said, _ in found] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [said["updates"] for _, said, _ in found] == [1, 2, 3, 3, 4, 4, 5, 5, 5, 6]


def test_an_update_of_one_batch_is_bitwise_what_it_is_without_accumulation():
    gradients = jax.random.normal(jax.random.key(0), (3, 2, 3))
    plain, one = made(Optimizer(**PLAIN), gradients), made(Optimizer(**PLAIN, accumulate_steps="0:1, 9:2"), gradients)
    np.testing.assert_array_equal([update for update, *_ in one], [update for update, *_ in plain])
    assert plain[0][1] == {}


def test_a_skipped_step_is_not_part_of_an_update_and_the_schedule_continues():
    falling = SGD | dict(schedule="linear(warmup_steps=0, final_fraction=0.0)", learning_rate=1.0)
    gradients = jnp.asarray([1.0, jnp.nan, 3.0, 5.0, 5.0])[:, None, None] * jnp.ones((1, 2, 3))
    found = made(Optimizer(**falling, accumulate_steps="2", skip_limit=3), gradients, losses=[1.0, 1.0, 1.0, jnp.inf, 1.0])
    assert updated(found) == [2] and [bool(update.any()) for update, *_ in found] == [False, False, True, False, False]
    np.testing.assert_allclose(found[2][0], -2.0 * (1 - 2 / 100), rtol=1e-6)
    assert tuple(map(int, skip_nonfinite.skip_counts(found[-1][2]))) == (2, 0)


def by_the_norm_test(gradients, weights, number, eta, most):
    """Number of batches of each update, in order, by the definition."""
    numbers, at = [number], 0
    while at + numbers[-1] < len(gradients):
        k = numbers[-1]
        g, w = gradients[at : at + k].reshape(k, -1), weights[at : at + k]
        mean = np.average(g, axis=0, weights=w)
        variance = k / w.sum() * (w * ((g - mean) ** 2).sum(-1)).sum() / (k - 1)
        wanted = int(np.ceil(variance / (eta**2 * (mean**2).sum())))
        power = next((p for p in (1, 2, 4, 8, 16) if p >= wanted), most)
        numbers.append(max(k, min(power, most)))
        at += k
    return numbers


@pytest.mark.parametrize("most", [16, 8])
def test_by_the_norm_test_the_next_update_has_as_many_batches_as_its_variance_asks_for(most):
    """The gradient shrinks relative to its noise, so the number grows; at the end it is large again, and the number stays."""
    rng = np.random.default_rng(10)
    signal = np.repeat([3.0, 1.2, 0.6, 6.0], [8, 8, 24, 40])[:, None, None]
    gradients, weights = (signal + rng.normal(size=(80, 2, 3))).astype(np.float32), rng.integers(1, 5, 80).astype(np.float32)
    found = made(Optimizer(**SGD, accumulate_steps=f"norm_test(max_steps={most})"), jnp.asarray(gradients), weights)
    wanted = by_the_norm_test(gradients.astype(np.float64), weights.astype(np.float64), 2, 0.5, most)
    numbers = [said["accumulate_steps"] for step, (_, said, _) in enumerate(found) if step in {0, *(s + 1 for s in updated(found))}]
    assert numbers == wanted and set(numbers) == {2, 4, 8, most}, wanted
    assert updated(found) == [end - 1 for end in np.cumsum(wanted) if end <= 80]


def test_without_any_gradient_the_norm_test_asks_for_no_more():
    found = made(Optimizer(**SGD, accumulate_steps="norm_test"), jnp.zeros((4, 2, 3)))
    assert [said["accumulate_steps"] for _, said, _ in found] == [2, 2, 2, 2]


def test_a_run_that_stops_in_the_middle_of_an_update_resumes_bitwise(digest, numbers, tmp_path):
    settings = dict(optimizer__accumulate_steps="norm_test(threshold=0.9)", optimizer__skip_limit=3, training__ema=0.9)
    experiment = tiny(**settings, training__eval_every=6)
    training.train(experiment, tmp_path / "whole", console=quiet())
    training.train(stopping(experiment, 3), tmp_path / "run", console=quiet())
    training.train(experiment, tmp_path / "run", console=quiet())
    assert digest(experiment, tmp_path / "run") == digest(experiment, tmp_path / "whole")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    lines = [line for line in numbers(tmp_path / "run") if line["kind"] == "train"]
    assert [line["updated"] for line in lines][:4] == [0, 1, 0, 1], "step 3 is in the middle"
