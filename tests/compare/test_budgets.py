"""Comparisons at equal budgets: their runs, the choice among shapes and other axes, the claims that are refused."""

import io
import json

import pytest
from rich.console import Console

from seqzoo import cli, compare, config
from seqzoo.compare.summary import Run, labels, summarise
from seqzoo.config import Comparison, Experiment, Model

BASE = Experiment(model=Model(d_model=64, depth=2, channel="none"), task="mqar(vocab_size=64, length=32, pairs=4)")
FRONT = "base_conv(conv_size=3)"
AXES = {
    "model.layers": ((FRONT, "gla"), (FRONT, "softmax(window=...)"), (FRONT, "softmax"), (FRONT, "aaren")),
    "optimizer.learning_rate": (1e-3, 3e-3, 1e-2),
    "training.seed": (0, 1),
}
SIZED = Comparison(base=BASE, axes=AXES, match="state_bytes", budget=(1024, 4096), shapes=2, tuned=True)


def written(path, comparison):
    """Writes a config file of a comparison."""
    path.write_text(f"from seqzoo import config\nconfig = config.Comparison(**{json.loads(comparison.model_dump_json())!r})\n")


def runs(comparison, score, fails=lambda point: False):
    """Runs of a comparison whose results `score(point, experiment)` gives."""
    points = list(comparison.experiments())
    made = []
    for number, (label, (point, experiment)) in enumerate(zip(labels(comparison, points), points, strict=True)):
        accuracy = score(point, experiment)
        final = {"pairs=4": {"accuracy": accuracy, "loss": 1 - accuracy, "chance": 1 / 64, "settings": {"pairs": 4}}}
        summary = {
            "finished": True,
            "final": final,
            "test": {},
            "still_learning": False,
            "parameters": 1,
            "state_bytes": 2,
            "tokens_per_second": None,
        }
        rate, seed = experiment.optimizer.learning_rate, experiment.training.seed
        made.append(Run(str(number), label, point, rate, seed, summary, "diverged" if fails(point) else None))
    return made


def test_a_pattern_runs_at_each_budget_in_each_shape_and_an_anchor_once():
    found = {(point.get("budget"), point.get("shape"), e.model.layers) for point, e in SIZED.experiments()}
    assert {(budget, layers[1]) for budget, _, layers in found} == {
        (1024, "gla(heads=1, expand_k=0.25, expand_v=0.25)"),
        (1024, "gla(heads=4, expand_k=0.5, expand_v=0.5)"),
        (4096, "gla(heads=1, expand_k=0.5, expand_v=0.5)"),
        (4096, "gla(heads=1, expand_k=0.36, expand_v=0.72)"),
        (1024, "softmax(window=2)"),
        (4096, "softmax(window=8)"),
        (None, "softmax"),
    }
    points = list(SIZED.experiments())
    assert len(points) == 7 * 3 * 2 and all(len({p["model.layers"] for p, _ in points[i : i + 6]}) == 1 for i in range(0, 42, 6))
    assert all(layers == (FRONT, shape) for _, shape, layers in found if shape)


def test_labels_have_the_budget_and_not_what_is_chosen():
    assert list(compare.group_by_label(SIZED)) == [
        *("gla 1 KiB", "gla 4 KiB", "softmax(window=...) 1 KiB", "softmax(window=...) 4 KiB", "softmax"),
    ]
    alone = Comparison(base=BASE, axes=AXES, match="parameters", budget=60_000)
    assert list(compare.group_by_label(alone)) == ["gla", "softmax"], "one budget is no axis"


def test_the_best_shape_and_rate_on_validation_are_reported_with_the_settings():
    """The first shape has the best run of all, but not the best median."""
    first, second = "gla(heads=1, expand_k=0.5, expand_v=0.5)", "gla(heads=1, expand_k=0.36, expand_v=0.72)"
    table = {(first, 1e-2): (0.1, 1.0), (second, 3e-3): (0.7, 0.8), (second, 1e-3): (0.6, 0.6)}
    score = lambda point, e: table.get((point.get("shape"), e.optimizer.learning_rate), (0.2, 0.2))[e.training.seed]
    (row,) = [row for row in summarise(runs(SIZED, score)) if row.label == "gla 4 KiB"]
    assert (row.chosen, row.rate, row.score.median) == ({"shape": second}, 3e-3, 0.75)
    assert row.rates == {1e-3: 0.6, 3e-3: 0.75, 1e-2: pytest.approx(0.55)}
    assert len(row.choices) == 6 and row.point["matched"] == 4232 and "training.seed" not in row.point


def test_a_shape_whose_runs_fail_is_not_chosen():
    fails = lambda point: point.get("shape") == "gla(heads=1, expand_k=0.5, expand_v=0.5)"
    (row,) = [row for row in summarise(runs(SIZED, lambda *_: 0.5, fails)) if row.label == "gla 4 KiB"]
    assert row.chosen["shape"] == "gla(heads=1, expand_k=0.36, expand_v=0.72)" and row.rate == 1e-3


def test_weight_decays_can_be_chosen_too():
    rules = ("adamw(weight_decay=0.1)", "adamw(weight_decay=0.0)")
    axes = {"model.layers": ("gla", "linear"), "optimizer.learning_rate": (1e-3, 1e-2), "optimizer.rule": rules}
    chosen = Comparison(base=BASE, axes=axes, choose=("optimizer.learning_rate", "optimizer.rule"))
    score = lambda point, e: 0.9 if (e.optimizer.learning_rate, e.optimizer.rule) == (1e-2, rules[1]) else 0.5
    rows = summarise(runs(chosen, score))
    assert [(row.label, row.rate, row.chosen) for row in rows] == [
        (name, 1e-2, {"optimizer.rule": rules[1]}) for name in ("gla", "linear")
    ]
    ordinary = Comparison(base=BASE, axes=axes)
    assert len(summarise(runs(ordinary, score))) == 4, "an axis that is not chosen stays in the label"
    fixed = Comparison(base=BASE, axes=axes, choose=("optimizer.rule",))
    names = ["gla learning_rate=0.001", "gla learning_rate=0.01", "linear learning_rate=0.001", "linear learning_rate=0.01"]
    assert [row.label for row in summarise(runs(fixed, score))] == names, "so does the learning rate"


def test_results_report_and_table_show_what_is_matched_and_what_is_left_out(tmp_path):
    axes = {"model.layers": ("gla", "softmax", "aaren")}
    comparison = Comparison(base=BASE, axes=axes, match="state_bytes", budget=8192, shapes=2)

    def train(experiment, folder, *, console=None):
        folder.mkdir(parents=True)
        final = {"pairs=4": {"accuracy": 0.5, "loss": 1.0, "chance": 1 / 64, "settings": {"pairs": 4}}}
        line = {"step": 1, "kind": "eval", "eval_set": "pairs=4", "accuracy": 0.5, "loss": 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        summary = {"finished": True, "step": 1, "parameters": 1, "state_bytes": 9000, "tokens_per_second": 1.0}
        summary |= {"final": final, "best": final, "test": {}, "ended": "budget", "still_learning": False}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    with Console(record=True, width=200, file=io.StringIO()) as console:
        results = compare.run(comparison, tmp_path / "c", console=console, run=train)
    shape = "gla(heads=1, expand_k=0.5, expand_v=0.5)"
    assert [(row["label"], row["chosen"], row["point"]["matched"]) for row in results["rows"]] == [
        ("gla", {"shape": shape}, 8192),
        ("softmax", {}, 32768),
    ]
    (aaren,) = [each for each in results["not_matched"] if each["left_out"]]
    assert aaren["layers"] == ["aaren"] and aaren["budget"] == 8192 and "declares no shape" in aaren["reason"]
    report, shown = (tmp_path / "c" / "report.md").read_text(), console.export_text()
    assert f"| `{shape}` | 8,192 |" in report and "* Left out: aaren at 8,192: aaren declares no shape" in report
    assert "32,768 (not matched)" in report and "32,768 (not matched)" in shown and shape in " ".join(shown.split())
    assert (tmp_path / "c" / "results.csv").read_text().splitlines()[0].count("matched") == 1


def test_a_dry_run_shows_settings_measure_and_reasons(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "c.py", SIZED)
    assert cli.main(["c.py", "--dry-run", "--budget", "4096"]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "gla(heads=1, expand_k=0.36, expand_v=0.72)" in line]
    assert line.split()[-7:-5] == ["6", "4,232"] and "Left out: aaren at 4,096: aaren declares no shape" in shown
    assert "Not matched: softmax: its state grows with the row" in shown and "Runs: 24" in shown


def test_sweeps_keep_the_budget_and_take_settings_to_solve_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--sweep", "model.layers=gla,softmax(window=...)", "--sweep", "optimizer.learning_rate=1e-3,1e-2"]
    written(tmp_path / "c.py", SIZED)
    assert cli.main(["c.py", "--dry-run", "--tuned", "False", "--budget", "8192", *words]) == 0
    assert "softmax(window=8)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": 4096}, "budget=4096 without match: wanted match='state_bytes', 'parameters' or 'flops'"),
        ({"match": "state_bytes"}, "match='state_bytes' without a budget: wanted one, such as budget=4096"),
        ({"match": "state_bytes", "budget": 0}, "budget: 0: wanted a positive number, or several different ones"),
        ({"match": "state_bytes", "budget": (64, -1)}, "budget: (64, -1): wanted a positive number"),
        ({"match": "state_bytes", "budget": (64, 64)}, "several different ones"),
        ({"match": "memory", "budget": 64}, "'state_bytes', 'parameters' or 'flops'"),
        ({"choose": ("optimizer.rate",)}, "choose: 'optimizer.rate' is no axis. Did you mean 'optimizer.learning_rate'?"),
        ({"choose": ("training.seed",)}, "choose: 'training.seed' changes training.seed: the best seed would be luck"),
        ({"choose": ("model.layers",)}, "mixers are compared"),
        (
            {"tuned": True, "axes": {"optimizer.learning_rate": (1e-3,)}},
            "tuned=True with 1 learning rate: wanted at least 3",
        ),
        ({"tuned": True, "choose": ()}, "tuned=True, but no best learning rate is chosen"),
        ({"axes": {"model.dept": (1, 2)}}, "Did you mean 'model.depth'?"),
        (
            {"axes": {"model.layers": ("softmax(window=...)",)}},
            "'...' asks for a setting that meets a budget; wanted match and budget",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(given, says):
    axes = {name: AXES[name] for name in ("optimizer.learning_rate", "training.seed")} | {"model.layers": ("gla", "linear")}
    with pytest.raises(config.ConfigError) as caught:
        Comparison(**{"base": BASE, "axes": axes, **given})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_budget_that_no_mixer_can_meet_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    comparison = Comparison(base=BASE, axes={"model.layers": ("min_gru", "aaren")}, match="state_bytes", budget=(4096, 10**9))
    written(tmp_path / "c.py", comparison)
    for words in (["c.py", "--dry-run"], ["c.py"]):
        assert cli.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "error: no mixer can be given the budget of 1,000,000,000 bytes of recurrent memory: min_gru(expand="
        )
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]
