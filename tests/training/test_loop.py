"""Whole runs: the files they write, the settings they refuse, and divergence."""

import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seqzoo
from helpers.tiny import quiet, tiny
from seqzoo import config, tasks, training
from seqzoo.tasks.base import BatchSpec, EvalSet
from seqzoo.training.run import metric_writers, metrics


@tasks.registry.register("poisoned")
class Poisoned(tasks.Task):
    """Copying, with loss weights that are infinite in steps `at` to `until`."""

    at: int = 5
    until: int = 1000
    vocab_size: ClassVar[int] = 8
    max_length: ClassVar[int] = 4

    def spec(self, step):
        return BatchSpec("train", 0, 4, 4)

    def batch(self, spec, index):
        tokens = jax.random.randint(jax.random.fold_in(jax.random.key(0), index), (4, 4), 0, 8, jnp.int32)
        bad = (index >= self.at) & (index < self.until) & (spec.split == "train")
        return {"tokens": tokens, "targets": tokens, "weights": jnp.full((4, 4), jnp.where(bad, jnp.inf, 1.0), jnp.float32)}

    def eval_sets(self):
        return (EvalSet("copy", BatchSpec("copy", 0, 4, 4), 1, 1 / 8, {"length": 4}),)

    def notes(self):
        return ("made to fail",)


def steps_kept(folder):
    return training.Checkpoints(folder / "checkpoints").steps()


EXPERIMENT = dict(model__dropout=0.1)  # so that the dropout's keys must resume as well


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: (folder, summary, what it printed)."""
    folder, console = tmp_path_factory.mktemp("runs") / "whole", quiet()
    return folder, training.train(tiny(**EXPERIMENT), folder, console=console), console.file.getvalue()


def test_a_run_leaves_its_config_environment_metrics_summary_and_latest_checkpoints(whole):
    folder, summary, printed = whole
    assert config.load_json(folder / "config.json") == tiny(**EXPERIMENT)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__ and {"git", "device", "python", "command"} <= set(environment)
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert steps_kept(folder) == [4, 6]
    lines = metrics.read(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["eval_set"]) for line in lines if line["kind"] == "eval"] == [
        (step, name) for step in (3, 6) for name in ("pairs=1", "pairs=2")
    ]
    assert "step 6/6  loss" in printed and "\x1b" not in printed


def test_the_summary_agrees_with_the_metrics(whole):
    folder, summary, _ = whole
    assert summary["finished"] and summary["step"] == 6 and summary["tokens_per_second"] > 0
    evaluated = [line for line in metrics.read(folder / "metrics.jsonl") if line["kind"] == "eval"]
    last = {line["eval_set"]: line for line in evaluated if line["step"] == 6}
    for name, result in summary["final"].items():
        assert result["accuracy"] == last[name]["accuracy"] and result["loss"] == last[name]["loss"]
        assert result["chance"] == 1 / 16 and "pairs" in result["settings"]
    mean = lambda step: np.mean([line["accuracy"] for line in evaluated if line["step"] == step])
    assert np.mean([r["accuracy"] for r in summary["best"].values()]) == max(mean(3), mean(6))
    # Keys and values of 16 float32 for each of 16 tokens are what the cache of the one layer needs; a few counters come on top.
    assert 2 * 16 * 16 * 4 <= summary["state_bytes"] < 2 * 16 * 16 * 4 + 64
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(training.prepare(tiny()).abstract["params"]))


def test_a_finished_run_is_not_trained_again(whole):
    folder, summary, _ = whole
    before = (folder / "metrics.jsonl").read_bytes()
    assert training.train(tiny(**EXPERIMENT), folder, console=quiet()) == summary
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_folder_of_another_experiment_is_refused_and_left_alone(whole):
    folder, _, _ = whole
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    with pytest.raises(ValueError, match=r"holds another experiment .*training\.steps is 6 there, 7 here"):
        training.train(tiny(**EXPERIMENT, training__steps=7), folder, console=quiet())
    assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        training.train(tiny(), tmp_path, console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_does_not_fit_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ValueError):
        training.train(tiny(model__layers=("softmax(heads=3)",)), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_is_the_trained_one(whole):
    folder, summary, _ = whole
    setup = training.prepare(tiny(**EXPERIMENT))
    part = setup.task.eval_sets()[1]
    weight = hits = 0.0
    for index in range(part.batches):
        batch = setup.task.batch(part.spec, jnp.int32(index))
        logits, _ = seqzoo.load(folder)(batch["tokens"])
        hits += float(jnp.sum(batch["weights"] * (jnp.argmax(logits, -1) == batch["targets"])))
        weight += float(jnp.sum(batch["weights"]))
    assert hits / weight == summary["final"][part.name]["accuracy"]


def test_evaluating_a_run_gives_the_final_evaluation_again(whole):
    folder, summary, _ = whole
    assert training.evaluate_run(folder) == (6, summary["final"])


def test_the_test_sets_are_evaluated_once_at_the_end_and_are_in_no_file_that_training_reads(whole):
    folder, summary, printed = whole
    assert summary["test"].keys() == summary["final"].keys() and summary["test"] != summary["final"]
    assert training.evaluate_run(folder, test=True) == (6, summary["test"])
    assert printed.count("test accuracy") == 1 and "test" not in (folder / "metrics.jsonl").read_text()


@tasks.registry.register("unevaluated")
class Unevaluated(Poisoned):
    """Copying without evaluation sets."""

    def eval_sets(self):
        return ()


def test_a_task_without_evaluation_sets_trains_to_the_end_and_is_ranked_by_nothing(tmp_path):
    summary = training.train(tiny(task="unevaluated(at=1000)"), tmp_path / "run", console=quiet())
    assert (summary["ended"], summary["still_learning"]) == ("budget", False)
    assert summary["final"] == summary["best"] == summary["test"] == {}
    with pytest.raises(ValueError, match=r"training.patience=2, but unevaluated\(at=1000\) evaluates nothing; wanted None"):
        training.prepare(tiny(task="unevaluated(at=1000)", training__patience=2))


def test_a_diverged_run_names_step_metrics_and_the_last_good_checkpoint_and_keeps_it(tmp_path):
    console = quiet()
    with pytest.raises(training.Diverged, match=r"step 6: no longer finite \(.*loss=nan.*last good checkpoint is .*/4\."):
        training.train(tiny(task="poisoned(at=5)"), tmp_path / "run", console=console)
    assert "note: made to fail" in console.file.getvalue()
    assert steps_kept(tmp_path / "run") == [2, 4]
    state = training.Checkpoints(tmp_path / "run" / "checkpoints").restore(
        training.prepare(tiny(task="poisoned(at=5)")).abstract, print
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state["params"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["finished"] and "step 6" in summary["stopped"]


def test_nonfinite_steps_are_skipped_and_counted_up_to_a_limit(tmp_path):
    settings = dict(optimizer__skip_limit=3, training__steps=8, training__checkpoint_every=2, training__module_norms=True)
    summary = training.train(tiny(task="poisoned(at=3, until=5)", **settings), tmp_path / "run", console=quiet())
    lines = [line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert summary["finished"] and [line["skipped"] for line in lines] == [0, 0, 0, 1, 2, 2, 2, 2]
    for number in (lambda line: line["loss"], lambda line: line["gradient_norms"]["layers"]["0"]["mixer"]):
        assert [number(line) is None for line in lines] == [line["skipped_in_a_row"] > 0 for line in lines]
    for name in ("gradient_norms", "parameter_norms"):
        assert metric_writers.flatten(lines[0][name]).keys() == {"embedding", "layers/0/mixer", "layers/0/mixer_norm", "norm"}
    whole = np.linalg.norm(list(metric_writers.flatten(lines[0]["gradient_norms"]).values()))
    np.testing.assert_allclose(whole, lines[0]["gradient_norm"], rtol=1e-5)
    wanted = r"step 6: 3 steps in a row were skipped \(optimizer\.skip_limit\) .*last good checkpoint is .*/[46]\."
    with pytest.raises(training.Diverged, match=wanted):
        training.train(tiny(task="poisoned(at=3)", **settings), tmp_path / "other", console=quiet())


def test_a_state_that_is_not_finite_is_not_saved_even_if_the_loss_was(tmp_path):
    """An infinite step has a finite loss, computed before the update, but its parameters must not be saved."""
    wild = dict(optimizer__learning_rate=1e38, optimizer__schedule="constant(warmup_steps=0)", training__eval_every=6)
    with pytest.raises(training.Diverged):
        training.train(
            tiny(**wild, optimizer__rule="adamw(weight_decay=1e30)", training__checkpoint_every=1),
            tmp_path / "run",
            console=quiet(),
        )
    assert steps_kept(tmp_path / "run") == []
