"""Restoring from a run folder: the trained model, and its evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from seqzoo import config, data, tasks
from seqzoo.model import LanguageModel
from seqzoo.training.run import data_record, distributed, run_dir
from seqzoo.training.run.checkpoint import Checkpoints
from seqzoo.training.run.metrics import described
from seqzoo.training.state import State, TrainSetup, averaged, prepare
from seqzoo.training.step import evaluator


def restore(
    folder: str | Path, say: Callable[[str], None], mesh: config.Mesh | None, step: int | None = None, *, reads_data: bool = True
) -> tuple[TrainSetup, State]:
    """The set-up of a run and its latest state that loads, or that of `step`, on `mesh` (None: as in training).

    Without `reads_data` the files that the task reads may be gone, and the set-up gives no batches.
    Raises FileNotFoundError if there is no run or no checkpoint.
    """
    experiment = run_dir.load_config(folder)
    if not isinstance(experiment, config.Experiment):
        inside = ", ".join(sorted(str(path.parent) for path in Path(folder).glob("**/config.json"))[1:])
        raise FileNotFoundError(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    sizes = None if reads_data else data_record.sizes(folder)
    setup = prepare(experiment if mesh is None else experiment.model_copy(update={"mesh": mesh}), sizes)
    distributed.check_mesh(setup.mesh)
    state = Checkpoints(Path(folder) / "checkpoints").restore(setup.abstract, say, step)
    if state is None:
        raise FileNotFoundError(f"{folder} has no checkpoint")
    return setup, state


def load_model(folder: str | Path, step: int | None = None) -> LanguageModel:
    """The trained model of a run, on one device, with the moving average of the parameters if the run has one (training.ema).

    The files that the run was trained on are not read.

    `step` chooses one of the run's checkpoints (training.keep_best keeps the best one); None is the latest.
    """
    setup, state = restore(folder, print, config.Mesh(fsdp=1), step, reads_data=False)
    return setup.model(jax.device_put(averaged(state), jax.devices()[0]))


def load_tokenizer(folder: str | Path) -> data.Tokenizer | None:
    """The tokenizer of a run's text, from the run folder; of a task of your own, its `tokenizer`; None if the run has no text.

    Raises DataError if it is not the one that the run began with.
    """
    found = data_record.tokenizer_of(folder)
    if found is not None:
        return found
    experiment = run_dir.load_config(folder)
    return getattr(tasks.registry.create(experiment.task), "tokenizer", None) if isinstance(experiment, config.Experiment) else None


def evaluate_run(
    folder: str | Path,
    say: Callable[[str], None] = print,
    mesh: config.Mesh | None = None,
    step: int | None = None,
    *,
    test: bool = False,
) -> tuple[int, dict[str, dict[str, Any]]]:
    """(step, {eval set: {"accuracy", "loss", "chance", "settings"}}) of the latest checkpoint, or of `step`'s, on `mesh` (None: as
    in training); with `test`, on the test sets instead of those for validation.

    Raises ValueError if there are no test sets.
    """
    setup, state = restore(folder, say, mesh, step)
    parts = setup.task.test_sets() if test else setup.task.eval_sets()
    if test and not parts:
        raise ValueError(f"{setup.experiment.task} has no test sets; wanted an evaluation of those for validation")
    with jax.set_mesh(setup.mesh):
        results = evaluator(setup)(averaged(state), parts) or {}  # None: no signal stops it
    return int(state["step"]), {part.name: described(part, results[part.name]) for part in parts}
