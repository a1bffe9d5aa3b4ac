"""Restoring from a run folder: the trained model, and its evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from seqzoo import config
from seqzoo.model import LanguageModel
from seqzoo.training.run import distributed, run_dir
from seqzoo.training.run.checkpoint import Checkpoints
from seqzoo.training.state import State, TrainSetup, averaged, prepare
from seqzoo.training.step import evaluator


def restore(
    folder: str | Path, say: Callable[[str], None], mesh: config.Mesh | None, step: int | None = None
) -> tuple[TrainSetup, State]:
    """The set-up of a run and its latest state that loads, or that of `step`, on `mesh` (None: as in training).

    Raises FileNotFoundError if there is no run or no checkpoint.
    """
    experiment = run_dir.load_config(folder)
    if not isinstance(experiment, config.Experiment):
        inside = ", ".join(sorted(str(path.parent) for path in Path(folder).glob("**/config.json"))[1:])
        raise FileNotFoundError(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    setup = prepare(experiment if mesh is None else experiment.model_copy(update={"mesh": mesh}))
    distributed.check_mesh(setup.mesh)
    state = Checkpoints(Path(folder) / "checkpoints").restore(setup.abstract, say, step)
    if state is None:
        raise FileNotFoundError(f"{folder} has no checkpoint")
    return setup, state


def load_model(folder: str | Path, step: int | None = None) -> LanguageModel:
    """The trained model of a run, on one device, with the moving average of the parameters if the run has one (training.ema).

    `step` chooses one of the run's checkpoints (training.keep_best keeps the best one); None is the latest.
    """
    setup, state = restore(folder, print, config.Mesh(fsdp=1), step)
    return setup.model(jax.device_put(averaged(state), jax.devices()[0]))


def evaluate_run(
    folder: str | Path, say: Callable[[str], None] = print, mesh: config.Mesh | None = None, step: int | None = None
) -> tuple[int, dict[str, dict[str, Any]]]:
    """(step, {eval set: {"accuracy", "loss", "chance", "settings"}}) of the latest checkpoint, or of `step`'s, on `mesh` (None: as
    in training)."""
    setup, state = restore(folder, say, mesh, step)
    with jax.set_mesh(setup.mesh):
        results = evaluator(setup)(averaged(state))
    parts = {part.name: {"chance": part.chance, "settings": part.settings} for part in setup.task.eval_sets()}
    return int(state["step"]), {name: {**result, **parts[name]} for name, result in (results or {}).items()}
