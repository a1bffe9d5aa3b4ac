"""Run folders that cannot be used as they are: paths that checkpoints cannot have, and files that are gone."""

import shutil

import pytest

from helpers.tiny import TINY, quiet, stopping, tiny
from seqzoo import config, training
from seqzoo.cli import main
from seqzoo.training.run.run_dir import PATTERNS, RunDirError


@pytest.mark.parametrize("character", PATTERNS)
def test_a_path_from_which_no_checkpoint_could_be_read_is_refused_before_anything_is_made(tmp_path, character):
    folder = tmp_path / f"a{character}b" / "runs"
    experiment = tiny(run__folder=str(folder))
    for call in (
        lambda: training.train(experiment, folder / "run", console=quiet()),
        lambda: training.create_run_dir(folder, "run"),
        lambda: training.check(experiment),
    ):
        with pytest.raises(RunDirError, match="in its path, and no checkpoint could be read from there; wanted a folder") as caught:
            call()
        assert f" has {character} in" in str(caught.value) and "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that was stopped at step 4, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    training.train(stopping(tiny(training__keep=2), 4), folder, console=quiet())
    return folder


LOSSES = {  # what is gone, where --go-back continues, and the steps whose metrics are then there
    "checkpoints": (("checkpoints",), 0, range(1, 7)),
    "checkpoints/4": (("checkpoints/4",), 2, range(1, 7)),
    "metrics.jsonl": (("metrics.jsonl",), 4, (5, 6)),
    "checkpoints/4 and metrics.jsonl": (("checkpoints/4", "metrics.jsonl"), 2, range(3, 7)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_never_goes_back_without_a_word(saved, tmp_path, loss, numbers, monkeypatch, capsys):
    """A disk that is not mounted, say."""
    names, step, steps = LOSSES[loss]
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for name in names:
        shutil.rmtree(folder / name) if name.startswith("checkpoints") else (folder / name).unlink()
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    assert main(["resume", str(folder)]) == 2
    said = capsys.readouterr().err
    gone = " and ".join(str(folder / {"checkpoints": "checkpoints/4"}.get(name, name)) for name in names)
    assert f"error: {folder} was saved at step 4, but {gone} is missing;" in said and said.count("\n") == 1
    assert f"--go-back to continue from step {step}" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"} == left
    assert main(["resume", str(folder), "--training.stop-after-steps", "None", "--go-back"]) == 0
    assert [line["step"] for line in numbers(folder) if line["kind"] == "train"] == list(steps)
    assert training.Checkpoints(folder / "checkpoints").steps() == [4, 6]
    shutil.rmtree(folder / "checkpoints")
    assert main(["resume", str(folder)]) == 0, "a finished run needs no checkpoint"


def test_without_its_record_a_run_is_resumed_only_on_demand(saved, tmp_path):
    """Else the loss of one small file would switch off the checks of the others."""
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "saved.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    with pytest.raises(RunDirError, match=r"saved\.json is missing, which says up to which step"):
        training.train(tiny(training__keep=2), folder, console=quiet())
    assert training.train(tiny(training__keep=2), folder, console=quiet(), go_back=True)["finished"]


def test_a_checkpoint_under_the_name_of_another_step_does_not_load(saved, tmp_path):
    folder, console = tmp_path / "run", quiet()
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    (folder / "checkpoints" / "2").rename(folder / "checkpoints" / "4")
    with pytest.raises(training.CheckpointError, match=r"step 4: it holds step 2: its folder was renamed"):
        training.train(tiny(training__keep=2), folder, console=console)


def test_a_process_killed_between_a_save_and_its_record_leaves_a_run_that_resumes(saved, tmp_path):
    folder, console = tmp_path / "run", quiet()
    shutil.copytree(saved, folder)
    (folder / "saved.json").write_text('{"step": 2}')
    training.train(tiny(training__keep=2), folder, console=console)
    assert f"resuming {folder} at step 4" in console.file.getvalue()


def test_a_run_that_went_back_by_itself_is_not_asked_for_the_checkpoint_that_it_left(saved, tmp_path):
    """Its process is killed right after that."""
    folder, experiment = tmp_path / "run", tiny(training__keep=2)
    shutil.copytree(saved, folder)
    (folder / "checkpoints" / "4" / "manifest.ocdbt").write_bytes(b"")
    with training.Checkpoints(folder / "checkpoints", record=folder / "saved.json") as checkpoints:
        checkpoints.resume(training.prepare(experiment).abstract, print)
    assert checkpoints.steps() == [2]
    training.train(experiment, folder, console=quiet())


@pytest.mark.parametrize("early", [False, True])
def test_a_finished_run_takes_no_settings_without_a_step_and_tells_what_it_trains_with_others(tmp_path, early):
    """Else its config.json would show settings with which nothing was trained."""
    # Of so many examples one is guessed, so that a run which stops above 0 stops early.
    many = TINY["task"].replace("eval_examples=16", "eval_examples=256")
    folder = tmp_path / "run"
    experiment = tiny(task=many, training__stop_above=0.0, training__steps=60) if early else tiny()
    step = training.train(experiment, folder, console=quiet())["step"]
    before = (folder / "config.json").read_bytes(), (folder / "environment.json").read_bytes()
    other = config.replace(experiment, {"optimizer.learning_rate": 0.5})
    wanted = "a new folder" if early else "training.steps above 6 with them"
    says = rf"finished at step {step}, .*learning_rate is 0.001 there, 0.5 here\); wanted {wanted}"
    with pytest.raises(RunDirError, match=says):
        training.train(other, folder, console=quiet(), changed=True)
    assert ((folder / "config.json").read_bytes(), (folder / "environment.json").read_bytes()) == before
    if early:
        return
    console = quiet()
    assert training.train(config.replace(other, {"training.steps": 7}), folder, console=console, changed=True)["step"] == 7
    changes = "optimizer.learning_rate was 0.001, is 0.5; training.steps was 6, is 7"
    said = f"finished at step 6; training to step 7 with changed settings: {changes}\n"
    assert console.file.getvalue().startswith(said)
