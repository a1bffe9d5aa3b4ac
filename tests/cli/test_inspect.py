"""`inspect` shows the run as it is, and changes nothing in it."""

import json
import os

import jax
import pytest

from helpers.tiny import quiet, tiny
from seqzoo import cli, config, tasks, training
from seqzoo.cli import model_summary, run_summary
from seqzoo.config import Comparison
from seqzoo.mixers import state_bytes
from seqzoo.model import params

MIXED = tiny(model__layers=("gla(heads=2)", "softmax(heads=2)"), model__depth=5, model__channel="gelu", model__tie_embeddings=False)


@pytest.fixture(scope="module")
def model():
    """The mixed experiment's model, with arrays."""
    return training.build(MIXED.model, tasks.registry.create(MIXED.task), jax.random.key(0))


def test_the_parts_add_up_to_the_model(model):
    found = model_summary.describe(MIXED)
    rows = list(model_summary._rows(found.parameters))
    leaves = [parameter for *_, parameter in rows if parameter]
    assert sum(leaf.count for leaf in leaves) == params.count(params.split(model)[1])
    assert sum(count for depth, _, count, _ in rows if depth == 0) == sum(leaf.count for leaf in leaves)
    assert found.state_bytes == state_bytes(model, found.length) and found.length == 16
    inner = sum(len(layer.places) * layer.flops for layer in found.layers)
    assert found.flops == model.flops(1, 16) / 16 and found.flops - inner == pytest.approx(2 * 16 * 32)  # the head
    assert sum(len(layer.places) * layer.state_bytes for layer in found.layers) == found.state_bytes - 8  # position and segment


def test_every_layer_has_its_places_and_its_own_cost(model):
    gla, softmax = model_summary.describe(MIXED).layers
    assert gla.spec == "gla(heads=2)" and gla.places == (0, 2, 4) and softmax.places == (1, 3)
    blocks = model.stack.scanned.blocks()
    mixers = {name: block.mixer for name, block in blocks.items()}
    assert gla.flops * 16 == blocks["0_gla"].flops(1, 16) != softmax.flops * 16
    alone = {name: state_bytes(jax.tree.map(lambda leaf: leaf[0], mixer), 16) for name, mixer in mixers.items()}
    assert (gla.state_bytes, softmax.state_bytes) == (alone["0_gla"], alone["1_softmax"])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pattern_that_ends_early_has_the_layers_of_its_depth(depth):
    layers = model_summary.describe(tiny(model__layers=("softmax", "gla", "softmax(window=4)"), model__depth=depth)).layers
    assert [layer.places for layer in layers] == [(place,) for place in range(depth)]


def test_a_parameter_has_shape_dtype_and_axes(model):
    found = model_summary.describe(MIXED).parameters
    assert found["embedding"] == model_summary.Parameter((32, 16), "float32", ("vocab", "embed"))
    assert found["stack"]["scanned"]["0_gla"]["mixer_norm"]["scale"].axes[0] == "layers"


def test_only_changed_settings_are_listed():
    assert model_summary.changed(config.Experiment()) == {}
    assert model_summary.changed(config.replace(config.Experiment(), {"model.depth": 7, "run.dump_hlo": True})) == {
        "model.depth": (7, 2),
        "run.dump_hlo": (True, False),
    }


@pytest.fixture
def run(tmp_path):
    """The folder of a run under way, without its checkpoints' contents."""
    folder = tmp_path / "mine"
    (folder / "checkpoints" / "4").mkdir(parents=True)
    (folder / "checkpoints" / "2").mkdir()
    (folder / "config.json").write_text(MIXED.model_dump_json())
    lines = [
        {"step": 4, "kind": "train", "loss": 1.25, "tokens_per_second": None},
        {"step": 4, "kind": "eval", "eval_set": "pairs=1", "accuracy": 0.5, "position_loss": {"from": [0], "loss": [1.0]}},
        {"step": 5, "kind": "train", "loss": 1.125, "tokens_per_second": 100.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "ki')
    (folder / "environment.json").write_text(json.dumps(training.environment() | {"resumed": [training.environment()]}))
    return folder


def state_of(folder):
    """Everything about a folder that a reader could change."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else os.listdir(path)) for path in paths]


def test_a_run_under_way_is_shown_and_left_as_it_is(run, model):
    before, console = state_of(run), quiet()
    run_summary.show_run(run, console)
    shown = console.file.getvalue()
    assert f"{run}: step 5 of 6, not finished\ncheckpoints: 2, 4\n" in shown and "resumed: 1, last" in shown
    assert "training at step 5: loss 1.125, tokens_per_second 100\n" in shown
    assert "evaluation at step 4, pairs=1: accuracy 0.5\n" in shown
    assert "model.layers" in shown and "('gla(heads=2)', 'softmax(heads=2)')" in shown and "0, 2, 4" in shown
    assert (
        f"{params.count(params.split(training.build(MIXED.model, tasks.registry.create(MIXED.task), jax.random.key(0)))[1]):,}"
        in shown
    )
    assert state_of(run) == before


def test_the_reason_for_the_end_of_a_run_is_shown(run):
    (run / "summary.json").write_text(json.dumps({"finished": False, "stopped": "step 5: no longer finite"}))
    console = quiet()
    run_summary.show_run(run, console)
    assert "step 5 of 6, step 5: no longer finite" in console.file.getvalue()


def test_a_run_that_has_only_begun_is_shown(run):
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    for step in ("2", "4"):
        (run / "checkpoints" / step).rmdir()
    console = quiet()
    run_summary.show_run(run, console)
    assert "step 0 of 6, not finished\ncheckpoints: none yet\n" in console.file.getvalue()


def test_a_comparison_names_its_runs(tmp_path):
    (tmp_path / "config.json").write_text(Comparison(base=tiny(), axes={"training.seed": (0, 1)}).model_dump_json())
    (tmp_path / "runs" / "0-a").mkdir(parents=True)
    (tmp_path / "runs" / "0-a" / "config.json").write_text(tiny().model_dump_json())
    with pytest.raises(FileNotFoundError, match=r"holds a comparison; wanted one of its runs: .*0-a"):
        run_summary.show_run(tmp_path, quiet())


def test_the_command_inspects_runs_and_config_files(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "two.py"
    file.write_text(
        f"from seqzoo.config import *\nbase = Experiment(**{tiny().model_dump()!r})\n"
        "config = Comparison(base=base, axes={'model.layers': ('softmax', 'linear')})\n"
    )
    assert cli.main(["inspect", "mine"]) == 0
    assert "mine: step 5 of 6" in capsys.readouterr().out
    assert cli.main(["inspect", "two.py", "--model.depth", "3"]) == 0
    shown = capsys.readouterr().out
    assert "softmax" in shown and "linear" in shown and "0, 1, 2" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "two.py"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "inspect needs a run folder"),
        (("runs/none",), "runs/none is not a run folder"),
        (("none.py",), "there is no config file none.py"),
        (("runs/none", "--model.depth", "3"), "takes one run folder and no settings, found --model.depth 3"),
    ],
)
def test_a_missing_run_or_config_is_reported(words, says, capsys):
    assert cli.main(["inspect", *words]) == 2
    assert says in capsys.readouterr().err
