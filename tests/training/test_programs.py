"""Runs that differ in learning rate, weight decay or seeds share their programs, and get the numbers that they get alone."""

import json
from typing import ClassVar

import jax
import numpy as np
import pytest

from helpers.tiny import quiet, tiny
from seqzoo import tasks, training
from seqzoo.config import Comparison
from seqzoo.training import optim
from seqzoo.training.hyperparameters import shared_key
from seqzoo.training.programs import Programs

MQAR = "mqar(vocab_size=32, length=16, pairs=2, batch_size=8, eval_pairs=(1, 2), eval_examples=16{})"
BASE = dict(model__dropout=0.1, optimizer__rule="adamw(weight_decay=0.1)", training__module_norms=True)
OTHERS = {
    "learning rate": dict(optimizer__learning_rate=3e-3),
    "weight decay": dict(optimizer__rule="adamw(weight_decay=0.0)"),
    "seed": dict(training__seed=7),
    "data seed": dict(task=MQAR.format(", seed=3")),
    "seed of parameters and data": dict(training__seed=7, training__vary_data=True),
}
ALL = dict(
    optimizer__learning_rate=3e-3,
    optimizer__rule="adamw(weight_decay=0.0)",
    training__seed=7,
    task=MQAR.format(", seed=3"),
)


def read(folder):
    """The lines of metrics without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("seconds", "tokens_per_second", "mfu")} for line in lines]


@pytest.fixture(scope="module")
def shared():
    """Programs that a first run has compiled."""
    return Programs()


@pytest.fixture(scope="module")
def first(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    training.train(tiny(**BASE), folder, console=quiet(), programs=shared)
    return folder


@pytest.mark.parametrize("changed", [ALL, *(pytest.param(each, marks=pytest.mark.slow, id=name) for name, each in OTHERS.items())])
def test_a_run_with_programs_of_another_compiles_none_and_is_bitwise_the_run_alone(changed, shared, first, tmp_path):
    experiment = tiny(**BASE | changed)
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: compiled.append(1))
        training.train(experiment, tmp_path / "shared", console=quiet(), programs=shared)
    training.train(experiment, tmp_path / "alone", console=quiet())
    assert not compiled and read(tmp_path / "shared") == read(tmp_path / "alone") != read(first)


@pytest.mark.slow
def test_a_grid_of_rates_and_seeds_compiles_the_step_once(tmp_path):
    from seqzoo import compare

    axes = {"optimizer.learning_rate": (1e-3, 2e-3, 4e-3, 8e-3), "training.seed": (0, 1, 2)}
    compiled, compile_step = [], jax.stages.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda self, *a, **k: compiled.append(1) or compile_step(self, *a, **k))
        results = compare.run(Comparison(base=tiny(training__steps=2), axes=axes), tmp_path / "grid", console=quiet())
    assert len(compiled) == 1 and sum(run["finished"] for run in results["runs"]) == 12


@pytest.mark.parametrize(
    "changed",
    [
        dict(training__steps=7),
        dict(training__ema=0.9),
        dict(optimizer__clip_norm=0.5),
        dict(optimizer__rule="adamw(b2=0.9)"),
        dict(model__layers=("gla(heads=2)",)),
        dict(task=MQAR.format(", power=0.5")),
    ],
    ids=str,
)
def test_runs_that_differ_in_anything_else_share_nothing(changed):
    assert shared_key(tiny(**changed)) != shared_key(tiny())


@optim.register_schedule("compared")
def compared(learning_rate: float):
    """A schedule that cannot be traced in its learning rate."""
    return lambda step: learning_rate / 2 if learning_rate > 1e-3 else learning_rate


@pytest.mark.parametrize("constant", [dict(optimizer__schedule="compared"), dict(optimizer__noise=0.1)], ids=str)
def test_numbers_that_a_program_cannot_take_as_arguments_stay_constants(constant):
    varied = dict(optimizer__learning_rate=2e-3) if "schedule" in str(constant) else dict(training__seed=1)
    assert shared_key(tiny(**constant)) != shared_key(tiny(**constant | varied))
    assert shared_key(tiny()) == shared_key(tiny(**varied))


def test_a_schedule_of_the_user_sees_its_learning_rate_as_a_number(tmp_path):
    for rate, used in ((1e-3, 1e-3), (4e-3, 2e-3)):
        setup = training.prepare(tiny(optimizer__schedule="compared", optimizer__learning_rate=rate))
        _, metrics = training.train_step(setup)(training.initialise(setup), setup.task.spec(0), None, setup.hyperparameters)
        assert float(metrics["learning_rate"]) == pytest.approx(used)


def test_with_vary_data_the_seed_changes_training_examples_and_no_evaluation_examples():
    tokens = {}
    for seed in (0, 1):
        setup = training.prepare(tiny(training__seed=seed, training__vary_data=True))
        spec, part = setup.train_task.spec(0), setup.task.eval_sets()[0]
        tokens[seed] = [
            np.asarray(task.batch(each, 0)["tokens"]) for task, each in ((setup.train_task, spec), (setup.task, part.spec))
        ]
    assert (tokens[0][0] != tokens[1][0]).any() and (tokens[0][1] == tokens[1][1]).all()


@tasks.registry.register("unseeded")
class Unseeded(tasks.Task):
    """A task without a seed."""

    vocab_size: ClassVar[int] = 8
    max_length: ClassVar[int] = 4


def test_varied_data_of_a_task_without_a_seed_are_refused():
    with pytest.raises(ValueError, match=r"training\.vary_data=True, but unseeded has no seed; wanted vary_data=False"):
        training.prepare(tiny(task="unseeded", training__vary_data=True))
