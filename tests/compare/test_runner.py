"""A comparison of runs that a stand-in trains: nothing twice, the right numbers chosen, everything written whole."""

import csv
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from seqzoo import compare, training
from seqzoo.compare import runner
from seqzoo.compare.summary import RATE, SEED, Run, summarise
from seqzoo.compare.tables import table
from seqzoo.config import Comparison, ConfigError, Experiment, Training
from seqzoo.training.run import run_dir

EVAL_SETS = {"pairs=2": 2, "pairs=4": 4, "pairs=16": 16}


class Trainer:
    """Writes what a trainer would, at once. `accuracy(experiment, pairs)` says how well it went, `bits` how well on text,
    `test(final)` how well on the test sets, `learns(experiment)` whether the curve rose at the end."""

    def __init__(self, accuracy, diverges=lambda _: False, stops_at=None, bits=None, test=lambda final: {}, learns=lambda _: False):
        self.accuracy, self.diverges, self.stops_at, self.bits, self.test = accuracy, diverges, stops_at, bits, test
        self.learns = learns
        self.ran = []

    def __call__(self, experiment, folder, *, console=None):
        if len(self.ran) == self.stops_at:
            raise KeyboardInterrupt
        self.ran.append(folder.name)
        folder.mkdir(parents=True)
        ends = {name: self.accuracy(experiment, pairs) for name, pairs in EVAL_SETS.items()}
        lines = []
        for step in range(10, 101, 10):
            done = 1 - math.exp(-step / 30)
            lines.append({"step": step, "kind": "train", "loss": 5 * (1 - done * ends["pairs=4"]), "tokens_per_second": 1e5})
            lines += [{"step": step, "kind": "eval", "eval_set": s, "accuracy": a * done, "loss": 1.0} for s, a in ends.items()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        chance = 1 / 128
        final = {
            name: {
                "accuracy": accuracy,
                "loss": 1 - accuracy,
                "chance": chance,
                "settings": {"length": 64, "pairs": EVAL_SETS[name]},
            }
            for name, accuracy in ends.items()
        }
        if self.bits is not None:
            bits = {"bits_per_byte": self.bits(experiment)}
            final = {"held-out": bits | {"loss": 1.0, "accuracy": 0.5, "chance": None, "settings": {"length": 64}}}
            lines = [line | bits if line["kind"] == "eval" else line for line in lines]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {"step": 100, "parameters": 12345, "state_bytes": 2048, "tokens_per_second": 1e5}
        summary |= {"final": final, "best": final, "test": self.test(final)}
        if self.diverges(experiment):
            summary |= {"finished": False, "stopped": "step 7: no longer finite"}
        else:
            summary |= {"finished": True, "ended": "budget", "still_learning": self.learns(experiment)}
        (folder / "summary.json").write_text(json.dumps(summary))
        if self.diverges(experiment):
            raise training.Diverged("step 7: no longer finite")
        return summary


def comparison(**axes):
    return Comparison(base=Experiment(training=Training(steps=100)), axes={path.replace("__", "."): v for path, v in axes.items()})


THREE = comparison(
    model__layers=("softmax", "gla(heads=2)"), optimizer__learning_rate=(1e-3, 1e-2), training__seed=(0, 1, 2)
)  # 2 x 2 x 3


def known(experiment, pairs):
    """Best rate of softmax is 1e-2, of gla 1e-3; gla's one lucky seed at 1e-2 must not win."""
    name, rate, seed = experiment.model.layers[0], experiment.optimizer.learning_rate, experiment.training.seed
    table = {("softmax", 1e-3): (0.2, 0.3, 0.4), ("softmax", 1e-2): (0.6, 0.8, 0.7)}
    table |= {("gla(heads=2)", 1e-3): (0.5, 0.5, 0.6), ("gla(heads=2)", 1e-2): (0.1, 0.1, 1.0)}
    return table[name, rate][seed] - (0.1 if pairs == 16 else 0.0)


def quiet():
    return Console(file=io.StringIO(), width=160)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, trainer = tmp_path_factory.mktemp("comparison") / "c", Trainer(known)
    with Console(record=True, width=200, file=io.StringIO()) as console:
        results = compare.run(THREE, folder, console=console, run=trainer)
    return folder, trainer, results, console.export_text()


def test_every_point_runs_once_in_a_folder_of_its_own(finished):
    folder, trainer, _, _ = finished
    assert len(trainer.ran) == len(set(trainer.ran)) == 12
    assert trainer.ran[0] == "00-softmax-learning_rate=0.001-seed=0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "claims",
        "config.json",
        "eval_sets.png",
        "learning_curves.png",
        "lock",
        "report.md",
        "results.csv",
        "results.json",
        "runs",
        "store.json",
    ]


def test_the_learning_rate_is_chosen_by_the_median_over_seeds(finished):
    rows = {row["label"]: row for row in finished[2]["rows"]}
    assert (rows["softmax"]["rate"], rows["gla"]["rate"]) == (1e-2, 1e-3)
    two = rows["softmax"]["eval_sets"]["pairs=2"]
    assert (two["median"], two["low"], two["high"]) == (0.7, 0.6, 0.8)
    assert rows["gla"]["score"]["median"] == pytest.approx(0.5 - 0.1 / 3)
    assert set(rows["softmax"]["rates"]) == {"0.001", "0.01"}


def test_results_record_what_is_needed_to_repeat_them(finished):
    folder, _, results, _ = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {"versions", "git", "device", "command"} <= set(results["environment"])
    assert results["runs"][4]["config"]["training"]["seed"] == 1
    assert Comparison.model_validate(results["config"]).axes.keys() == THREE.axes.keys()


def test_the_csv_has_a_line_for_every_run_and_evaluation_set(finished):
    with (finished[0] / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    line = lines[-1]
    assert (line["label"], line["learning_rate"], line["seed"], line["eval_set.pairs"]) == ("gla", "0.01", "2", "16")
    assert float(line["accuracy"]) == 0.9 and float(line["chance"]) == 1 / 128


def test_the_terminal_shows_accuracy_chance_parameters_state_and_speed(finished):
    text = finished[3]
    for word in (
        "softmax",
        "gla",
        "16",
        "chance",
        "0.008",
        "0.700",
        "±0.10",
        "12,345",
        "2,048",
        "100,000",
        "0.01",
    ):
        assert word in text, word


def test_the_report_shows_table_rates_pictures_and_origin(finished):
    text = (finished[0] / "report.md").read_text()
    assert "12 of 12 runs" in text and "![" in text and "eval_sets.png" in text and "jax " in text
    assert "| `softmax` | 0.267 | **0.667** |" in text


def test_pictures_are_png_of_a_readable_size(finished):
    for name in ("eval_sets.png", "learning_curves.png"):
        data = (finished[0] / name).read_bytes()
        width, height = np.frombuffer(data[16:24], ">u4")
        assert data[:4] == b"\x89PNG" and width > 900 and height > 500


def test_a_finished_comparison_is_not_repeated(finished):
    folder = finished[0]
    again = Trainer(known)
    assert compare.run(THREE, folder, console=quiet(), run=again)["rows"] == json.loads(json.dumps(finished[2]["rows"]))
    assert again.ran == []


def test_an_interrupted_comparison_continues_where_it_stopped(tmp_path):
    small = comparison(model__layers=("softmax", "gla", "linear"))
    first = Trainer(lambda *_: 0.5, stops_at=2)
    with pytest.raises(KeyboardInterrupt):
        compare.run(small, tmp_path / "c", console=quiet(), run=first)
    assert len(json.loads((tmp_path / "c" / "results.json").read_text())["rows"]) == 2, "what is finished is already written"
    second = Trainer(lambda *_: 0.5)
    compare.run(small, tmp_path / "c", console=quiet(), run=second)
    assert (first.ran, second.ran) == (["0-softmax", "1-gla"], ["2-linear"])


def test_a_diverged_run_is_recorded_not_repeated_and_does_not_stop_the_others(tmp_path):
    axes = comparison(optimizer__learning_rate=(1e-3, 1.0))
    trainer = Trainer(lambda *_: 0.5, diverges=lambda experiment: experiment.optimizer.learning_rate == 1.0)
    for _ in range(2):
        results = compare.run(axes, tmp_path / "c", console=quiet(), run=trainer)
    assert len(trainer.ran) == 2
    assert [(run["finished"], run["problem"]) for run in results["runs"]] == [(True, None), (False, "step 7: no longer finite")]
    (row,) = results["rows"]
    assert row["rate"] == 1e-3 and "no longer finite" in (tmp_path / "c" / "report.md").read_text()


class Failing(Trainer):
    """Raises an error for seed 1 of softmax until `error` is None."""

    def __init__(self, error):
        super().__init__(known)
        self.error = error

    def __call__(self, experiment, folder, *, console=None):
        if self.error is not None and experiment.training.seed == 1:
            (folder / "checkpoints").mkdir(parents=True)  # as a process that was killed may leave it
            raise self.error
        if folder.exists():
            raise ValueError(f"{folder} is not empty")
        return super().__call__(experiment, folder, console=console)


SEEDS = comparison(training__seed=(0, 1, 2))


@pytest.mark.parametrize(
    ("error", "says", "traced"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more"),
            "RuntimeError: RESOURCE_EXHAUSTED: out of memory and more",
            True,
        ),
        (ZeroDivisionError("in a mixer of the user"), "ZeroDivisionError: in a mixer of the user", True),
        (AssertionError(), "AssertionError", True),
        (run_dir.RunDirError("it has no config.json but is not empty"), "it has no config.json", False),
        (FileNotFoundError(2, "No such file or directory", "corpus"), "corpus", False),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_run_that_fails_is_recorded_and_the_others_go_on_until_it_is_retried(tmp_path, error, says, traced):
    folder, trainer, console = tmp_path / "c", Failing(error), quiet()
    results = compare.run(SEEDS, folder, console=console, run=trainer)
    name = results["runs"][1]["name"]
    assert [each["finished"] for each in results["runs"]] == [True, False, True] and says in results["runs"][1]["problem"]
    failure = (folder / "runs" / name / "failure.txt").read_text(encoding="utf-8")
    assert failure.startswith(results["runs"][1]["problem"] + "\n") and ("Traceback" in failure) == traced
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert f"`{name}`: {results['runs'][1]['problem']}\n" in report and "--retry" in console.file.getvalue()
    trainer.error = None
    assert compare.run(SEEDS, folder, console=quiet(), run=trainer)["runs"][1]["problem"] == results["runs"][1]["problem"]
    results = compare.run(SEEDS, folder, console=quiet(), run=trainer, retry=True)
    assert all(each["finished"] for each in results["runs"]) and len(trainer.ran) == 3
    assert (folder / "runs" / f"{name}.failed1" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    "error", [training.WriteError("No space left on device"), training.Interrupted(15, 3), KeyboardInterrupt()]
)
def test_a_full_disk_and_a_signal_end_a_comparison(tmp_path, error):
    trainer = Failing(error)
    with pytest.raises(type(error)):
        compare.run(SEEDS, tmp_path / "c", console=quiet(), run=trainer)
    assert len(trainer.ran) == 1


@pytest.mark.parametrize(
    "damage",
    [{"final": {"pairs=2": {}}}, {"final": {"pairs=2": None}}, {"state_bytes": None}, {"tokens_per_second": "fast"}],
    ids=str,
)
def test_a_summary_that_lacks_numbers_is_a_problem_of_its_run(tmp_path, damage):
    compare.run(SEEDS, tmp_path / "c", console=quiet(), run=Trainer(known))
    (path,) = tmp_path.glob("c/runs/0-*/summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    results = compare.run(SEEDS, tmp_path / "c", console=quiet(), run=Trainer(known))
    assert str(path) in results["runs"][0]["problem"] and results["runs"][1]["finished"]


def test_a_comparison_in_which_everything_diverged_still_reports(tmp_path):
    trainer = Trainer(lambda *_: 0.5, diverges=lambda _: True)
    results = compare.run(comparison(model__layers=("softmax",)), tmp_path / "c", console=quiet(), run=trainer)
    assert results["rows"] == [] and (tmp_path / "c" / "report.md").exists()


def test_text_is_compared_by_bits_per_byte_of_which_fewer_are_better(tmp_path):
    """gla's large rate diverges, which counts as 8 bits, though what it reached is lower."""
    table = {("softmax", 1e-3): 2.0, ("softmax", 1e-2): 2.5, ("gla", 1e-3): 1.75, ("gla", 1e-2): 1.5}
    key = lambda experiment: (experiment.model.layers[0], experiment.optimizer.learning_rate)
    trainer = Trainer(lambda *_: 0.5, diverges=lambda experiment: key(experiment) == ("gla", 1e-2), bits=lambda e: table[key(e)])
    axes = comparison(model__layers=("softmax", "gla"), optimizer__learning_rate=(1e-3, 1e-2))
    with Console(record=True, width=200, file=io.StringIO()) as console:
        results = compare.run(axes, tmp_path / "c", console=console, run=trainer)
    assert results["objective"] == "bits_per_byte"
    assert {row["label"]: (row["rate"], row["score"]["median"]) for row in results["rows"]} == {
        "softmax": (1e-3, 2.0),
        "gla": (1e-3, 1.75),
    }
    report = (tmp_path / "c" / "report.md").read_text()
    assert "Validation bits per byte after the last step" in report and "**1.750**" in report
    assert "chance" not in report and "eval_sets.png" not in report and not (tmp_path / "c" / "eval_sets.png").exists()
    assert "chance" not in console.export_text()
    lines = list(csv.DictReader(io.StringIO((tmp_path / "c" / "results.csv").read_text())))
    assert [line["bits_per_byte"] for line in lines] == ["2.0", "2.5", "1.75"]


TWO_RATES = comparison(model__layers=("softmax", "gla(heads=2)"), optimizer__learning_rate=(1e-3, 1e-2))


def shown_table(results_of):
    """The text that a comparison prints, and its results."""
    with Console(record=True, width=200, file=io.StringIO()) as console:
        results = results_of(console)
    return console.export_text(), results


def test_validation_chooses_and_the_test_sets_are_shown(tmp_path):
    """On the test sets the other learning rate is the better one: nobody may see that before the choice."""
    opposite = lambda final: {name: numbers | {"accuracy": 1 - numbers["accuracy"]} for name, numbers in final.items()}
    train = Trainer(lambda experiment, pairs: 0.9 if experiment.optimizer.learning_rate == 1e-3 else 0.3, test=opposite)
    printed, results = shown_table(lambda console: compare.run(TWO_RATES, tmp_path / "c", console=console, run=train))
    assert results["shown"] == "test"
    for row in results["rows"]:
        assert row["rate"] == 1e-3 and row["rates"] == {"0.001": 0.9, "0.01": 0.3}
        assert [each["median"] for each in (row["score"], *row["eval_sets"].values())] == pytest.approx([0.1] * 4)
    report = (tmp_path / "c" / "report.md").read_text()
    for text in (printed, report):
        assert "Test accuracy after the last step, at the best of 2 learning rates on validation." in text
    assert "| `softmax` | 0.100 | 0.100 | 0.100 |" in report and "| `softmax` | **0.900** | 0.300 |" in report
    line = next(csv.DictReader(io.StringIO((tmp_path / "c" / "results.csv").read_text())))
    assert (float(line["accuracy"]), float(line["test_accuracy"])) == (0.9, pytest.approx(0.1))


def test_a_row_that_is_still_learning_is_marked_everywhere_and_not_ranked(tmp_path):
    """gla is best where it is chosen, but its curve still rose there; softmax learns only where it is not chosen."""
    rate = lambda experiment: experiment.optimizer.learning_rate
    best = lambda experiment, pairs: (0.9 if "gla" in experiment.model.layers[0] else 0.6) - 10 * rate(experiment)
    learns = lambda experiment: rate(experiment) == 1e-3 if "gla" in experiment.model.layers[0] else rate(experiment) == 1e-2
    train = Trainer(best, learns=learns)
    printed, results = shown_table(lambda console: compare.run(TWO_RATES, tmp_path / "c", console=console, run=train))
    assert [(row["still_learning"], row["rates_still_learning"]) for row in results["rows"]] == [(False, [1e-2]), (True, [1e-3])]
    report = (tmp_path / "c" / "report.md").read_text()
    assert "○ gla (still learning)" in printed and "● softmax " in printed and "they are not ranked" in printed
    assert "4 of 4 runs have a result: 2 at the budget, 2 still learning." in report
    assert "| `softmax` | **0.590** | 0.500 + |" in report and "| `gla` *still learning* | **0.890 +** | 0.800 |" in report
    rows = summarise(runs := [loaded(tmp_path / "c", each) for each in results["runs"]])
    for gla in (rows[1], rows[1]._replace(eval_sets=rows[0].eval_sets)):  # better, and equal
        drawn = table([rows[0], gla], runs, "")
        bold = [["bold" in cell.markup for cell in column.cells] for column in drawn.columns[1:4]]
        assert bold == [[True, False, False]] * 3, "softmax, gla, chance"


def loaded(folder, run):
    """A run of results.json with the summary of its folder."""
    fields = {name: run[name] for name in ("name", "label", "point", "rate", "seed", "problem")}
    return Run(**fields, summary=json.loads((folder / "runs" / run["name"] / "summary.json").read_text()))


def test_where_rows_have_results_of_different_numbers_of_seeds_the_numbers_are_shown(tmp_path):
    axes = comparison(model__layers=("softmax", "gla(heads=2)"), training__seed=(0, 1))
    diverges = lambda experiment: "gla" in experiment.model.layers[0] and experiment.training.seed == 1
    train = Trainer(lambda *_: 0.5, diverges=diverges)
    printed, _ = shown_table(lambda console: compare.run(axes, tmp_path / "c", console=console, run=train))
    report = (tmp_path / "c" / "report.md").read_text()
    assert "median of the seeds that have a result" in printed and "2 seeds" not in report and " seeds " in printed
    assert "| `softmax` | 0.500 | 0.500 | 0.500 | 2 |" in report and "| `gla` | 0.500 | 0.500 | 0.500 | 1 |" in report


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        compare.run(THREE, tmp_path, run=Trainer(known))
    compare.run(comparison(model__layers=("gla",)), tmp_path / "c", console=quiet(), run=Trainer(lambda *_: 0.5))
    before = (tmp_path / "c" / "config.json").read_text()
    with pytest.raises(ValueError, match="another comparison"):
        compare.run(THREE, tmp_path / "c", run=Trainer(known))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["notes.txt"]
    assert (tmp_path / "c" / "config.json").read_text() == before


def test_other_axes_become_part_of_the_label(tmp_path):
    axes = comparison(model__layers=("softmax", "gla"), model__d_model=(32, 64))
    results = compare.run(axes, tmp_path / "c", console=quiet(), run=Trainer(lambda *_: 0.5))
    assert [row["label"] for row in results["rows"]] == [
        "softmax d_model=32",
        "softmax d_model=64",
        "gla d_model=32",
        "gla d_model=64",
    ]
    assert RATE not in results["runs"][0]["point"] and SEED not in results["runs"][0]["point"]


def test_of_two_processes_each_trains_the_runs_that_the_other_has_not_claimed(tmp_path, monkeypatch):
    """The second one comes while the first trains seed 0, and waits for that run at the end."""
    trainer, second, waited = Trainer(lambda experiment, pairs: 0.5), Trainer(lambda experiment, pairs: 0.5), []

    class Waiting(BaseException):
        """Raised in the place of a long wait."""

    def wait(_):
        waited.append(1)
        raise Waiting

    def train(experiment, folder, *, console):
        if not waited:
            with pytest.raises(Waiting):
                compare.run(SEEDS, tmp_path / "c", console=console, run=second)
        return trainer(experiment, folder)

    monkeypatch.setattr(runner, "sleep", wait)
    results = compare.run(SEEDS, tmp_path / "c", console=quiet(), run=train)
    assert (len(trainer.ran), len(second.ran)) == (1, 2) and sorted(trainer.ran + second.ran) == sorted(
        each["name"] for each in results["runs"]
    )
    assert all(each["finished"] for each in results["runs"])


def test_further_seeds_are_trained_for_the_chosen_rate_only_and_choose_nothing(tmp_path):
    """gla's further seeds at 1e-3 are so bad that 1e-2 would be better over all seeds."""
    axes = comparison(model__layers=("softmax", "gla(heads=2)"), optimizer__learning_rate=(1e-3, 1e-2))
    staged = Comparison(base=axes.base, axes=axes.axes, seeds_of_best=(3, 4))
    first = {("softmax", 1e-3): 0.2, ("softmax", 1e-2): 0.6, ("gla(heads=2)", 1e-3): 0.5, ("gla(heads=2)", 1e-2): 0.1}
    key = lambda experiment: (experiment.model.layers[0], experiment.optimizer.learning_rate)
    trainer = Trainer(lambda experiment, pairs: 0.05 if experiment.training.seed else first[key(experiment)])
    results = compare.run(staged, tmp_path / "c", console=quiet(), run=trainer)
    assert len(trainer.ran) == 8 and sorted(name for name in trainer.ran if "seed" in name) == [
        "1-softmax-learning_rate=0.01-seed=3",
        "1-softmax-learning_rate=0.01-seed=4",
        "2-gla_heads=2-learning_rate=0.001-seed=3",
        "2-gla_heads=2-learning_rate=0.001-seed=4",
    ]
    softmax, gla = results["rows"]
    assert (softmax["rate"], gla["rate"]) == (1e-2, 1e-3) and gla["rates"] == {"0.001": 0.5, "0.01": pytest.approx(0.1)}
    assert gla["score"] == {"median": pytest.approx(0.05), "low": pytest.approx(0.05), "high": 0.5} and len(gla["runs"]) == 3
    assert compare.run(staged, tmp_path / "c", console=quiet(), run=Trainer(known))["rows"] == json.loads(
        json.dumps(results["rows"])
    )


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"training.seed": (0, 3)}, "repeats 0; wanted seeds besides 0, 3"),
        ({"model.layers": ("gla",)}, "repeats 0; wanted seeds besides 0"),
        ({"size": {"a": {"training.seed": 7}}}, "the axis 'size' sets training.seed; wanted training.seed as an axis of its own"),
    ],
    ids=str,
)
def test_further_seeds_are_new_ones(axes, says):
    with pytest.raises(ConfigError, match=says):
        Comparison(axes=axes, seeds_of_best=(0, 3))
