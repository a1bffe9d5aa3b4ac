"""Comparisons before they run: their grid points, and the settings that a published grid needs."""

import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from helpers.tiny import quiet, tiny
from seqzoo import cli, compare, config, training
from seqzoo.config import Comparison
from seqzoo.model import LanguageModel
from seqzoo.training.optim.optimizer import make_optimizer
from seqzoo.training.run import metrics

ROOT = Path(__file__).parents[2]
FIGURE2 = config.load_file(ROOT / "configs" / "mqar_figure2.py")

NAMED = Comparison(
    base=tiny(),
    axes={
        "size": {
            "small": {"model.d_model": 8, "model.learned_positions": 16},
            "large": {"model.d_model": 32, "model.learned_positions": 20},
        },
        "mixer": {
            "attention": {"model.layers": ("softmax(heads=2, rope_theta=None)",)},
            "based, 2 layers": {"model.layers": ("base_conv", "based"), "model.depth": 2, "model.learned_positions": None},
        },
        "optimizer.learning_rate": (1e-3, 1e-2),
    },
)


def test_an_axis_of_names_changes_settings_together_and_the_later_axis_counts():
    found = {
        (*list(point.values())[:2], experiment.model.d_model, experiment.model.depth, experiment.model.learned_positions)
        for point, experiment in NAMED.experiments()
    }
    assert found == {
        ("small", "attention", 8, 1, 16),
        ("large", "attention", 32, 1, 20),
        ("small", "based, 2 layers", 8, 2, None),
        ("large", "based, 2 layers", 32, 2, None),
    }
    assert NAMED.varied == {
        "model.d_model",
        "model.learned_positions",
        "model.layers",
        "model.depth",
        "optimizer.learning_rate",
    }


def test_a_label_begins_with_what_the_mixers_are_called():
    labels = ["attention small", "based, 2 layers small", "attention large", "based, 2 layers large"]
    assert list(compare.group_by_label(NAMED)) == labels
    assert {len(experiments) for experiments in compare.group_by_label(NAMED).values()} == {2}


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"size": {}}, "wanted {name: {setting: value}}"),
        ({"size": {"small": 3}}, "wanted {name: {setting: value}}"),
        ({"size": {"small": {"model.dept": 3}}}, "Did you mean 'model.depth'?"),
        ({"size": {"small": {"model.depth": 3}}, "model.depth": (1, 2)}, "model.depth is an axis, and 'size' sets it too"),
    ],
)
def test_a_wrong_axis_of_names_is_refused(axes, says):
    with pytest.raises(config.ConfigError) as caught:
        Comparison(base=tiny(), axes=axes)
    assert says in str(caught.value)


def test_axes_of_names_survive_json(tmp_path):
    (tmp_path / "config.json").write_text(NAMED.model_dump_json())
    assert config.load_json(tmp_path / "config.json") == NAMED


def test_grid_points_have_the_cost_of_the_runs_that_would_be_trained():
    for point in compare.grid_points(NAMED):
        setup = training.prepare(point.experiments[0])
        assert point.parameters == sum(leaf.size for leaf in jax.tree.leaves(setup.abstract["params"]))
        leaves = jax.tree.leaves(jax.eval_shape(lambda setup=setup: setup.model(setup.abstract["params"]).init_state(1, 16)))
        assert point.state_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        assert point.flops == setup.model(setup.abstract["params"]).flops(1, 16) // 16
        assert (point.steps, point.tokens) == (6, 6 * 8 * 16)


@pytest.fixture(scope="module")
def figure2():
    return compare.grid_points(FIGURE2)


def test_figure_2_is_the_published_grid(figure2):
    """Section 4 and the released configs: 4 data points, 4 widths, 4 learning rates, 64 epochs of 100,000 examples."""
    assert len(figure2) == 4 * 4 * 5 and all(len(point.experiments) == 4 for point in figure2)
    rates = sorted({experiment.optimizer.learning_rate for experiment in figure2[0].experiments})
    assert np.allclose(rates, np.logspace(-4, -2, 4), rtol=1e-3)
    for point in figure2:
        experiment = point.experiments[0]
        length, pairs = (int(word[2:]) for word in point.label.split() if word[:2] in ("L=", "K="))
        batch = {64: 512, 128: 512, 256: 256, 512: 128}[length]
        assert f"length={length}, pairs={pairs}, examples=100000, batch_size={batch}" in experiment.task
        assert point.steps == 64 * (100_000 // batch) and point.tokens == point.steps * batch * length
        attention = experiment.model.layers[0].startswith("softmax")
        assert experiment.model.learned_positions == (length if attention else None)
        assert experiment.model.depth == (4 if "4 layers" in point.label else 2)


def test_figure_2_has_the_parameters_and_the_state_of_its_layers(figure2):
    """Attention at width d: embedding, positions, two of (4 d^2 + 4 d and a norm of 2 d), a last norm. Its state: 2 d L numbers a
    layer, and six counters."""
    for point in figure2:
        model, length = point.experiments[0].model, point.experiments[0].model.learned_positions
        if length is not None:
            d = model.d_model
            assert point.parameters == 8192 * d + length * d + 2 * (4 * d * d + 4 * d + 2 * d) + 2 * d
            assert point.state_bytes == 4 * (2 * 2 * d * length + 6)


def test_a_dry_run_lists_cells_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "named.py"
    path.write_text(f"from seqzoo import config\nconfig = config.Comparison(**{json.loads(NAMED.model_dump_json())!r})\n")
    assert cli.main([str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for point in compare.grid_points(NAMED):
        (line,) = [line for line in shown.splitlines() if f"● {point.label} " in line]
        numbers = (2, point.parameters, point.state_bytes, point.flops, 6, 768)
        assert line.split()[-6:] == [f"{number:,}" for number in numbers]
    assert "Runs: 8, with 6,144 tokens in all." in shown
    assert list(tmp_path.iterdir()) == [path]


def test_a_dry_run_takes_settings_and_refuses_a_model_that_cannot_be_built(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--dry-run", "--training.steps", "7"]) == 0
    assert "Runs: 9, with" in capsys.readouterr().out
    assert cli.main([str(ROOT / "configs" / "mqar.py"), "--model.d-model", "7", "--dry-run"]) == 2
    assert "does not divide" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_overriding_a_setting_of_a_named_axis_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "named.py"
    path.write_text(f"from seqzoo import config\nconfig = config.Comparison(**{json.loads(NAMED.model_dump_json())!r})\n")
    assert cli.main([str(path), "--model.depth", "3"]) == 2
    assert "model.depth is an axis of this comparison" in capsys.readouterr().err


STOPPING = {"training.steps": 9, "training.eval_every": 2, "training.checkpoint_every": 4, "optimizer.learning_rate": 3e-2}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    """A run to its end, and the mean accuracy of each of its evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    summary = training.train(config.replace(tiny(), STOPPING), folder, console=quiet())
    assert summary["finished"] and summary["ended"] == "budget"
    return means(folder)


def means(folder):
    by_step = {}
    for line in metrics.read(folder / "metrics.jsonl"):
        if line["kind"] == "eval":
            by_step.setdefault(line["step"], []).append(line["accuracy"])
    return {step: sum(values) / len(values) for step, values in by_step.items()}


def level(accuracies):
    """A threshold that some evaluation before the last is the first to pass, and that evaluation's step."""
    step, best = max(((s, a) for s, a in accuracies.items() if s < 9), key=lambda each: (each[1], -each[0]))
    below = max((a for s, a in accuracies.items() if s < step), default=0.0)
    assert best > below, "no evaluation rises above those before it: make the run longer"
    return (best + below) / 2, step


def test_a_run_ends_at_the_first_evaluation_above_the_threshold(unstopped, tmp_path):
    threshold, step = level(unstopped)
    experiment = config.replace(tiny(), STOPPING | {"training.stop_above": threshold})
    summary = training.train(experiment, tmp_path / "run", console=quiet())
    assert (summary["finished"], summary["ended"], summary["step"]) == (True, "solved", step)
    assert means(tmp_path / "run") == {s: a for s, a in unstopped.items() if s <= step}
    assert training.Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == step
    assert training.train(experiment, tmp_path / "run", console=quiet()) == summary, "a finished run is not trained again"


def test_a_run_killed_at_the_evaluation_that_ends_it_ends_there(unstopped, tmp_path):
    """Checkpoint and evaluation are there, the summary is not."""
    threshold, step = level(unstopped)
    experiment = config.replace(tiny(), STOPPING | {"training.stop_above": threshold})
    training.train(experiment, tmp_path / "run", console=quiet())
    (tmp_path / "run" / "summary.json").unlink()
    summary = training.train(experiment, tmp_path / "run", console=quiet())
    assert (summary["finished"], summary["ended"], summary["step"]) == (True, "solved", step)


@pytest.mark.slow
def test_an_accuracy_that_only_equals_the_threshold_does_not_end_a_run(unstopped, tmp_path):
    best = max(unstopped.values())
    experiment = config.replace(tiny(), STOPPING | {"training.stop_above": min(best, 0.999)})
    summary = training.train(experiment, tmp_path / "run", console=quiet())
    assert (summary["ended"], summary["step"]) == ("budget", 9)


def test_a_comparison_chooses_among_runs_that_ended_at_different_steps(tmp_path):
    """One rate passes the threshold, one does not: the row is the first's, and the report says that runs ended sooner."""

    def train(experiment, folder, *, console=None):
        folder.mkdir(parents=True)
        early = experiment.optimizer.learning_rate == 1e-2
        steps, accuracy = (range(2, 5, 2), 0.995) if early else (range(2, 11, 2), 0.5)
        lines = [{"step": s, "kind": "eval", "eval_set": "pairs=4", "accuracy": accuracy, "loss": 1.0} for s in steps]
        lines += [{"step": s, "kind": "train", "loss": 1.0, "tokens_per_second": 1e5} for s in steps]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        final = {"pairs=4": {"accuracy": accuracy, "loss": 1.0, "chance": 1 / 16, "settings": {"pairs": 4}}}
        summary = {
            "finished": True,
            "ended": "solved" if early else "budget",
            "still_learning": False,
            "step": steps[-1],
            "parameters": 1,
            "state_bytes": 1,
            "final": final,
            "best": final,
            "test": {},
        }
        summary |= {"tokens_per_second": 1e5}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    results = compare.run(NAMED, tmp_path / "c", console=Console(file=io.StringIO(), width=160), run=train)
    assert {row["rate"] for row in results["rows"]} == {1e-2} and {row["score"]["median"] for row in results["rows"]} == {0.995}
    assert [run["name"] for run in results["runs"]][:2] == [
        "0-small-attention-learning_rate=0.001",
        "1-small-attention-learning_rate=0.01",
    ]
    assert "fewer where an evaluation's accuracy was above training.stop_above" in (tmp_path / "c" / "report.md").read_text()


def test_the_embedding_has_a_dropout_of_its_own():
    """With the branches' at 0, the rate's share of the stack's inputs is 0 and the others are divided by 1 - rate."""
    tokens = jnp.arange(512, dtype=jnp.int32).reshape(2, 256) % 11
    build = lambda **rates: LanguageModel(11, 16, layers=("linear",), depth=1, channel="none", **rates, rngs=nnx.Rngs(0))
    seen = {}

    def record(model):
        stack = model.stack
        model.stack = lambda x, **_: (seen.setdefault("x", x), None)
        model(tokens, key=jax.random.key(0))
        model.stack = stack
        return seen.pop("x")

    for rates, rate in (
        ({"embedding_dropout": 0.25}, 0.25),
        ({"dropout": 0.25}, 0.25),
        ({"dropout": 0.5, "embedding_dropout": 0.0}, 0.0),
    ):
        model = build(**rates)
        x, whole = np.asarray(record(model)), np.asarray(model.embedding[...])[np.asarray(tokens)]
        kept = x != 0
        assert abs((1 - kept.mean()) - rate) < 5 * math.sqrt(rate * (1 - rate) / x.size) + 1e-9
        np.testing.assert_allclose(x[kept], (whole / (1 - rate))[kept], rtol=1e-6)
        assert model.stack.scanned is None or getattr(model.stack.scanned, "0_linear").dropout == rates.get("dropout", 0.0)


@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_acts_where_decay_all_says(everything):
    """Without a gradient a decayed parameter shrinks by rate x decay, and another stays."""
    settings = config.Optimizer(
        rule=f"adamw(weight_decay=0.5, decay_all={everything})",
        learning_rate=0.1,
        schedule="constant(warmup_steps=0)",
        clip_norm=None,
    )
    own = {"matrix": ("embed", "heads"), "bias": ("heads",)}
    state = nnx.State({name: nnx.Param(jnp.ones((2,) * len(axes)), axes=axes) for name, axes in own.items()})
    parameters = nnx.to_pure_dict(state)
    tx = make_optimizer(settings, 10, state)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, parameters), tx.init(parameters), parameters)
    np.testing.assert_allclose(updates["matrix"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.05 if everything else 0.0, rtol=1e-6)


def test_language_models_of_all_mixers_have_equal_parameters_and_tokens():
    points = compare.grid_points(config.load_file(ROOT / "configs" / "lm_mixers.py"))
    assert len(points) >= 10 and len({(point.steps, point.tokens) for point in points}) == 1
    assert all(abs(point.parameters / points[0].parameters - 1) < 1e-3 for point in points)
    assert len({experiment.task for point in points for experiment in point.experiments}) == 1


# A record keeps the names that settings had when it was made; here are those that are called otherwise now.
RENAMED_SETTINGS = {
    "rope_base=": "rope_theta=",
    "head_width=": "head_dim=",
    "conv_width=": "conv_size=",
    "base_conv(width=": "base_conv(conv_size=",
    '"tied":': '"tie_embeddings":',
}


@pytest.mark.parametrize("name", ["mqar_figure2_cell", "mqar_equal_state", "parity", "lm_mixers"])
def test_a_recorded_run_is_that_of_its_config(name):
    text = (ROOT / "docs" / "results" / f"{name}.json").read_text()
    for old, new in RENAMED_SETTINGS.items():
        text = text.replace(old, new)
    record = json.loads(text)
    assert Comparison.model_validate(record["config"]) == config.load_file(ROOT / "configs" / f"{name}.py")
