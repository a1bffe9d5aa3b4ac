"""`model.init_from`: a run starts from the parameters of another run, or of a checkpoint of another project."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.checkpoint_folders import MAMBA, mamba_tensors, write
from helpers.tiny import quiet, stopping, tiny
from seqzoo import cli, config, convert, training
from seqzoo.training import init_from

SHORT = {"training__steps": 2, "training__eval_every": 2, "training__checkpoint_every": 2}
KEEP_ALL = {"training__keep": 9}


def saved_run(folder, *steps, **values):
    """A run folder with checkpoints of other parameters than seed 0 draws; no step was made for them."""
    experiment = tiny(training__seed=7, **values)
    folder.mkdir()
    (folder / "config.json").write_text(experiment.model_dump_json())
    state = training.initialise(training.prepare(experiment))
    with training.Checkpoints(folder / "checkpoints", keep=9) as checkpoints:
        checkpoints.resume(state, print)
        for step in steps:
            for i, name in enumerate(name for name in ("params", "ema") if name in state):
                state[name] = jax.tree.map(lambda x, shift=step + i: x + shift, state[name])
            checkpoints.save(state | {"step": jnp.int32(step)})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("source") / "run", 2)


def state(folder, step=None):
    """The state of a checkpoint, the latest or that of a step."""
    setup = training.prepare(config.load_json(folder / "config.json"))
    return setup, training.Checkpoints(folder / "checkpoints").restore(setup.abstract, print, step)


def names(tree):
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def test_a_run_starts_from_the_parameters_of_another_and_the_optimizer_fresh(source, tmp_path):
    console = quiet()
    experiment = tiny(model__init_from=str(source), **SHORT, **KEEP_ALL)
    training.train(experiment, tmp_path / "run", console=console)
    trained = state(source)[1]["params"]
    setup, first = state(tmp_path / "run", step=0)
    assert_same(first["params"], trained)
    assert_same(first["opt_state"], setup.optimizer(setup.hyperparameters).init(trained))
    assert int(first["step"]) == 0
    count = len(names(trained))
    assert f"initial parameters from {source} at step 2: {count} of {count} loaded\n" in console.file.getvalue()
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["init_from"]
    assert recorded["step"] == 2 and len(recorded["loaded"]) == count and not recorded["not_loaded"] + recorded["unused"]
    assert config.load_json(tmp_path / "run" / "config.json").model.init_from == str(source)


def test_a_resumed_run_does_not_read_the_other_model_again(source, tmp_path, digest):
    held = shutil.copytree(source, tmp_path / "held")
    experiment = tiny(model__init_from=str(held), training__steps=3, training__eval_every=3)
    training.train(experiment, tmp_path / "whole", console=quiet())
    training.train(stopping(experiment, 1), tmp_path / "parts", console=quiet())
    shutil.rmtree(held)
    training.train(stopping(experiment, 1), tmp_path / "parts", console=quiet())
    training.train(experiment, tmp_path / "parts", console=quiet())
    assert digest(experiment, tmp_path / "parts") == digest(experiment, tmp_path / "whole")
    training.evaluate_run(tmp_path / "parts")


def test_parameters_of_one_model_alone_are_reported(source):
    experiment = tiny(model__init_from=str(source), model__tie_embeddings=False, model__norm_eps=1e-3)
    plain = config.replace(experiment, {"model.init_from": None})
    setup = training.prepare(experiment)
    loaded, report = init_from.load(setup, print)
    assert report.not_loaded == ["head/w"] and not report.unused and report.other_settings.keys() == {"tie_embeddings", "norm_eps"}
    assert any("drawn as without init_from: head/w" in line for line in report.lines())
    found, drawn = (names(s["params"]) for s in (training.initialise(setup, loaded), training.initialise(training.prepare(plain))))
    np.testing.assert_array_equal(found["head/w"], drawn["head/w"])
    np.testing.assert_array_equal(found["embedding"], names(state(source)[1]["params"])["embedding"])


def test_the_moving_average_is_read_if_the_other_run_kept_one(tmp_path):
    held = state(saved_run(tmp_path / "source", 2, training__ema=0.5))[1]
    assert not np.array_equal(held["ema"]["embedding"], held["params"]["embedding"])
    setup = training.prepare(tiny(model__init_from=str(tmp_path / "source"), training__ema=0.9))
    found = training.initialise(setup, init_from.load(setup, print)[0])
    assert_same(found["params"], held["ema"])
    assert_same(found["ema"], held["ema"])


def test_parameters_are_placed_on_the_mesh_and_cast(source):
    experiment = tiny(model__init_from=str(source), model__param_dtype="bfloat16", mesh__fsdp=2)
    setup = training.prepare(experiment)
    loaded, _ = init_from.load(setup, print)
    wanted = setup.abstract["params"]
    jax.tree.map(lambda leaf, like: (leaf.dtype, leaf.sharding) == (like.dtype, like.sharding) or pytest.fail(), loaded, wanted)
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), state(source)[1]["params"]))


def test_a_checkpoint_of_another_project_fills_a_padded_vocabulary(mamba):
    setup = training.prepare(from_mamba(mamba, model__pad_vocab=5))
    first = training.initialise(setup, init_from.load(setup, print)[0])["params"]
    np.testing.assert_array_equal(first["embedding"], np.pad(convert.load(mamba).embedding[...], [(0, 3), (0, 0)]))


def test_an_older_checkpoint_is_taken_where_the_latest_is_damaged(tmp_path):
    older = state(saved_run(tmp_path / "source", 2, 4), step=2)[1]["params"]
    file = next(path for path in sorted((tmp_path / "source/checkpoints/4/d").iterdir()) if path.is_file())
    file.write_bytes(b"x" + file.read_bytes()[1:])
    said = []
    loaded, report = init_from.load(training.prepare(tiny(model__init_from=str(tmp_path / "source"))), said.append)
    assert report.step == 2 and "4 does not load" in said[0]
    assert_same(loaded, older)


def test_the_missing_file_of_the_only_checkpoint_is_named(tmp_path):
    (saved_run(tmp_path / "source", 2) / "checkpoints" / "2" / "_METADATA").unlink()
    with pytest.raises(init_from.InitFromError, match="checkpoint 2 does not load: _METADATA is missing; wanted"):
        training.check(tiny(model__init_from=str(tmp_path / "source")))


@pytest.fixture
def mamba(tmp_path):
    tensors = mamba_tensors()
    wide = np.random.default_rng(1).normal(size=(32, 16)).astype(np.float32)
    return write(tmp_path / "mamba", tensors | {"backbone.embeddings.weight": wide}, MAMBA | {"vocab_size": 32})


def from_mamba(folder, **values):
    settings = {f"model__{name}": value for name, value in convert.settings(folder).items() if name != "vocab_size"}
    return tiny(**settings | {"model__init_from": str(folder)} | values)


def test_a_run_starts_from_a_checkpoint_of_another_project(mamba):
    setup = training.prepare(from_mamba(mamba))
    loaded, report = init_from.load(setup, print)
    first = training.initialise(setup, loaded)["params"]
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
    np.testing.assert_allclose(setup.model(first)(tokens)[0], convert.load(mamba)(tokens)[0], rtol=1e-5, atol=1e-5)
    assert report.loaded == [*names(first)] and report.step is None
    assert not report.not_loaded and not report.unused and not report.other_settings


def test_other_shapes_are_refused_by_name_before_anything_is_written(source, mamba, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shapes = r"parameter embedding has shape \(32, 16\) there, wanted \(32, 32\)"
    with pytest.raises(init_from.InitFromError, match=shapes):
        training.train(tiny(model__init_from=str(source), model__d_model=32), tmp_path / "run", console=quiet())
    with pytest.raises(init_from.InitFromError, match=shapes):
        training.check(from_mamba(mamba, model__d_model=32))
    assert not (tmp_path / "run").exists()
    (tmp_path / "plain.py").write_text("from seqzoo.config import Experiment\n\nconfig = Experiment()\n")
    words = ["--model.init-from", str(source), "--model.d-model", "32", "--task", tiny().task, "--mesh.fsdp", "1"]
    assert cli.main(["train", "plain.py", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: model.init_from={str(source)!r}: parameter embedding has shape")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "config.json does not exist; wanted a run folder, or a checkpoint folder that seqzoo.convert reads"),
        ("{", "config.json is damaged: wanted a JSON object"),
        ("[]", "config.json is damaged: wanted a JSON object"),
        ('{"axes": {}}', "holds a comparison; wanted one of its runs: there is none yet"),
        ('{"model_type": "mambo"}', "model_type='mambo' is not supported.* Did you mean 'mamba'"),
        ('{"model": {}}', "has no checkpoint; wanted a run with a complete checkpoint"),
    ],
)
def test_a_folder_without_a_model_is_refused_in_one_line(content, says, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(init_from.InitFromError, match=says) as caught:
        training.check(tiny(model__init_from=str(tmp_path)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"model.init_from={str(tmp_path)!r}: ")


def test_a_model_without_a_common_parameter_is_refused(source):
    with pytest.raises(init_from.InitFromError, match="has no parameter of the same name"):
        setup = training.prepare(tiny(model__init_from=str(source)))
        init_from._match(setup, init_from.Source(source, {"other": (1,)}, {}))
