"""One trainer for all: `run(experiment, folder)` trains or resumes, `evaluate_run(folder)` looks at what came out."""

from seqzoo.data.atomic_io import WriteError
from seqzoo.training.checkpoint import CheckpointError, Checkpoints
from seqzoo.training.folder import create as create_folder
from seqzoo.training.folder import environment, open_run, refuse_changes
from seqzoo.training.loop import Diverged, check, run
from seqzoo.training.signals import Interrupted
from seqzoo.training.state import Plan, build, initialise, prepare
from seqzoo.training.step import evaluator, train_step
from seqzoo.training.trained import evaluate_run, load_model

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Diverged",
    "Interrupted",
    "Plan",
    "WriteError",
    "build",
    "check",
    "create_folder",
    "environment",
    "evaluate_run",
    "evaluator",
    "initialise",
    "load_model",
    "open_run",
    "prepare",
    "refuse_changes",
    "run",
    "train_step",
]
