"""Run folders: a unique name, the config of the run, and the environment it ran in.

config.json        the experiment or comparison
data.json          the files that the task read, if any, each with its digest; vocabulary and lengths (data_record.py)
tokenizer.json     a copy of the tokenizer that the data was prepared with, if any
environment.json   versions, git revision, devices, command line; one more entry per resumption
metrics.jsonl      one line per logged step and evaluation set
summary.json       step, results and throughput so far
checkpoints/       one directory per kept step
saved.json         step of the latest checkpoint, length and digest of metrics.jsonl at that time: their loss is noticed
lock               held by the process that trains here
"""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

import seqzoo
from seqzoo import config
from seqzoo.data.atomic_io import remove_temporaries, write_errors, write_json, write_text
from seqzoo.data.json_files import read_json, require
from seqzoo.tasks.base import Task
from seqzoo.training.run import data_record
from seqzoo.training.run.checkpoint import ABOUT, SAVED, Checkpoints
from seqzoo.training.run.lock import RunLock
from seqzoo.training.run.metrics import METRICS, differs

CHANGED, GO_BACK = "--changed", "--go-back"  # `changed` and `go_back` on the command line
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDirError(ValueError):
    """A run folder that cannot be used as asked. The message names what it holds and what was wanted; nothing was written."""


# Orbax takes the first three for a pattern, and leaves out the files that it does not find; TensorStore takes "\\" for "/".
PATTERNS = ("*", "?", "[", "\\")


def check_path(folder: str | Path) -> None:
    """Raises RunDirError if no checkpoint that is saved in a folder could be read, because of a character of its path."""
    path = Path(folder).absolute().as_posix()
    if found := [character for character in PATTERNS if character in path]:
        wanted = f"wanted a folder whose path has none of {' '.join(PATTERNS)}"
        raise RunDirError(f"{path} has {' '.join(found)} in its path, and no checkpoint could be read from there; {wanted}")


def create_run_dir(parent: str | Path, name: str) -> Path:
    """Makes a new folder: parent/name, or name-2, name-3 ... if that is taken. Safe against runs that start at the same time.

    Raises:
      RunDirError: a character of the path. WriteError: the folder cannot be made.
    """
    parent = Path(parent)
    check_path(parent / name)
    number = 1
    with write_errors(parent / name):
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1


def create_or_resume(
    folder: str | Path,
    experiment: config.Experiment,
    mesh: config.Mesh | None = None,
    *,
    task: Task,
    changed: bool = False,
    go_back: bool = False,
    finished: int | None = None,
    lock: RunLock,
) -> str:
    """Opens a folder for a run, new or resumed, and records config and environment, and `mesh` if it is not the config's.

    Args:
      folder, experiment, mesh: as in `loop.train`.
      task: the experiment's, which may read files.
      changed: whether a run may continue with settings that change its numbers; they are recorded.
      go_back: whether a run may continue from an earlier step if its latest checkpoint is gone, and without its metrics.
      finished: the step at which the run ended, if it has nothing more to do; it then needs no checkpoint.
      lock: of the folder; it is taken here, once the folder is known to be that of a run, and before anything in it changes.
    Returns:
      The settings that change, in words; "" if none does.
    Raises:
      LockedError: another process trains there. RunDirError: the folder holds another experiment, other data, or other files;
        nothing is written then. WriteError: it cannot be written.
    """
    folder = Path(folder)
    path = folder / "config.json"
    data = data_record.record_of(task)
    more: dict[str, Any] = {} if mesh is None else {"mesh": mesh.model_dump()}
    differing: dict[str, Any] = {}
    if path.exists():
        lock.acquire()
        held = config.load_json(path)
        if not isinstance(held, config.Experiment):
            raise RunDirError(f"{folder} holds a comparison, wanted a new folder or one of the experiment that is to be resumed")
        if not changed:
            refuse_changes(folder, held, experiment)
            _check_checkpoint(folder, experiment)
        if finished is not None:
            _refuse_without_steps(folder, held, experiment, finished)
        elif not go_back:
            check_saved(folder)
        _check_steps(folder, experiment.training.steps)
        _check_data(folder, data.get("files", {}))
        remove_temporaries(folder)
        if differing := config.difference(held, experiment):
            more["changed"] = differing
            write_text(path, experiment.model_dump_json(indent=2) + "\n")
    elif folder.exists() and any(folder.iterdir()):
        raise RunDirError(f"{folder} has no config.json but is not empty; wanted a new folder, or that of a run to be resumed")
    else:
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if data:
            data_record.copy_tokenizer(task, folder)
            write_json(folder / data_record.DATA, data)
        write_text(path, experiment.model_dump_json(indent=2) + "\n")
    _record_environment(folder / "environment.json", more)
    return "; ".join(f"{name} was {was!r}, is {now!r}" for name, (was, now) in differing.items())


def _refuse_without_steps(folder: Path, held: config.Experiment, experiment: config.Experiment, finished: int) -> None:
    """Raises RunDirError if a run that has nothing more to do would record settings with which no step was trained."""
    differing = _numerical(config.difference(held, experiment))
    differing = {name: both for name, both in differing.items() if not name.startswith(("run.", "mesh."))}
    if differing:
        early = held.training.steps > finished  # solved, or on a plateau: more steps would not be trained either
        raise RunDirError(
            f"{folder} is finished at step {finished}, and no step would be trained with other settings ({_as_text(differing)}); "
            f"wanted {'' if early else f'training.steps above {finished} with them, or '}a new folder"
        )


def refuse_changes(folder: Path, held: config.Experiment, experiment: config.Experiment) -> None:
    """Raises RunDirError if the folder holds an experiment whose settings give other numbers."""
    if differing := _numerical(config.difference(held, experiment)):
        found = _as_text(differing)
        raise RunDirError(f"{folder} holds another experiment ({found}); wanted a new folder, the same settings, or {CHANGED}")


def _check_checkpoint(folder: Path, experiment: config.Experiment) -> None:
    """Raises RunDirError if the latest checkpoint was saved with settings that give other numbers: config.json was edited."""
    about = Checkpoints(folder / "checkpoints").about_latest()
    if about is None:
        return
    path, settings = about
    try:
        saved = config.Experiment(**settings)
    except config.ConfigError as error:
        raise RunDirError(f"{path / ABOUT} has no valid settings ({error}); wanted those of the run, or {CHANGED}") from error
    differing = _numerical(config.difference(saved, experiment))
    if differing := {name: both for name, both in differing.items() if not name.startswith("mesh.")}:
        raise RunDirError(
            f"{path} was saved with other settings ({_as_text(differing)}); wanted config.json as it was, or {CHANGED}"
        )


def _numerical(differing: dict[str, Any]) -> dict[str, Any]:
    """The differences in settings that change numbers."""
    return {name: both for name, both in differing.items() if name not in config.NUMERICALLY_NEUTRAL}


def _as_text(differing: dict[str, Any]) -> str:
    return "; ".join(f"{name} is {a!r} there, {b!r} here" for name, (a, b) in differing.items())


def _check_steps(folder: Path, steps: int) -> None:
    """Raises RunDirError if the run has already done more steps."""
    done = max(Checkpoints(folder / "checkpoints").steps(), default=0)
    if done > steps:
        raise RunDirError(f"training.steps={steps}, but {folder} has a checkpoint of step {done}; wanted at least {done}")


def check_saved(folder: Path) -> None:
    """Raises RunDirError if the latest checkpoint is gone, or the metrics are: the run would go back without a word."""
    steps, record = Checkpoints(folder / "checkpoints").steps(), folder / SAVED
    saved = read_json(record, absent={"step": -1})
    require(saved, str(record), step=int)
    step = max([saved["step"], *steps])
    if step < 0 and not (folder / METRICS).exists():  # no save was completed
        return
    if not record.exists():
        raise RunDirError(
            f"{record} is missing, which says up to which step the run was saved; wanted it back, or {GO_BACK} to continue with "
            f"what is there"
        )
    if step < 0:
        return
    needed = (folder / "checkpoints" / str(step), folder / METRICS)
    if gone := [str(path) for path in needed if not path.exists()]:
        raise RunDirError(
            f"{folder} was saved at step {step}, but {' and '.join(gone)} is missing; wanted it back (is a disk not mounted?), or "
            f"{GO_BACK} to continue from step {max(steps, default=0)} with what is there"
        )
    if "metrics" in saved:
        require(saved, str(record), metrics=dict)
        require(saved["metrics"], str(record), bytes=int, sha256=str)
        if differs(folder / METRICS, saved["metrics"]):
            raise RunDirError(
                f"{folder / METRICS} lost or changed lines since the run was saved at step {saved['step']}; wanted it as it was, "
                f"or {GO_BACK} to continue with what is there"
            )


def _check_data(folder: Path, data: dict[str, str]) -> None:
    """Raises RunDirError if the files that the task reads are not those that the run began with."""
    held = data_record.read(folder).get("files", {})
    for name in sorted(held.keys() | data.keys()):
        if held.get(name) != data.get(name):
            was, found = (values.get(name, "nothing") for values in (held, data))
            raise RunDirError(
                f"{folder} was trained on other data: {name} was {was} ({data_record.DATA}) and is {found}; wanted the same "
                f"contents, or a new folder"
            )


def load_config(folder: str | Path) -> config.Config:
    """The experiment or comparison of a run folder. Raises FileNotFoundError if the folder is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        inside = sorted(str(p.parent) for p in Path(folder).glob("*/config.json"))
        hint = f" Runs inside it: {', '.join(inside)}" if inside else ""
        raise FileNotFoundError(f"{folder} is not a run folder: it has no config.json.{hint}")
    return config.load_json(path)


def environment() -> dict[str, Any]:
    """Versions, git revision (None outside a checkout), devices, Python and the command line."""
    device = jax.devices()[0]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "versions": versions(),
        "python": platform.python_version(),
        "git": git_revision(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
        "processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """Versions of seqzoo and of the packages that numbers depend on."""
    return {"seqzoo": seqzoo.__version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def git_revision() -> dict[str, Any] | None:
    """The commit of the checkout that the code runs from, and whether files differ from it; None without checkout or commit."""
    root = Path(seqzoo.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed copy may be inside the repository of another project
        return None

    def git(*words):
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def record(folder: Path, **more: Any) -> None:
    """Adds to a run's environment.json."""
    path = folder / "environment.json"
    write_json(path, read_json(path) | more)


def _record_environment(path: Path, more: dict[str, Any]) -> None:
    now = environment() | more
    if path.exists():
        recorded = read_json(path)
        require(recorded, str(path), resumed=list) if "resumed" in recorded else recorded.update(resumed=[])
        recorded["resumed"].append(now)
        write_json(path, recorded)
    else:
        write_json(path, now)
