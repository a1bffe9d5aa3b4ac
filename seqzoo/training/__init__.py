"""One trainer for all: `train(experiment, folder)` starts or resumes a run, `evaluate_run(folder)` evaluates its checkpoints.

loop             the training run from top to bottom
step             one training step, one evaluation batch
state            from an experiment to a training state: a plain dict of arrays with shardings
init_from        initial parameters from another run or a converted checkpoint
loss             cross-entropy, chunked over time
input_pipeline   batches made on the devices, or read on the host ahead of time
module_norms     norms of gradient and parameters by module
objective        accuracy or bits per byte, by which results are ranked
plateau          whether the validation curve of a run still gains
restore          the trained model of a run folder
optim/           update rules, schedules, gradient accumulation, skipped steps, sharding of the optimizer's state
run/             run folders, checkpoints, metrics, signals, processes, profiling, throughput

Names are imported when they are used: the config checks update rules and schedules of optim/, and the trainer needs the config.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqzoo.data.atomic_io import WriteError
    from seqzoo.training.init_from import InitFromError
    from seqzoo.training.loop import Diverged, check, train
    from seqzoo.training.restore import evaluate_run, load_model, load_tokenizer
    from seqzoo.training.run.checkpoint import CheckpointError, Checkpoints
    from seqzoo.training.run.run_dir import create_run_dir, environment, load_config, refuse_changes
    from seqzoo.training.run.signals import Interrupted
    from seqzoo.training.state import TrainSetup, build, initialise, prepare
    from seqzoo.training.step import evaluator, train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Diverged",
    "InitFromError",
    "Interrupted",
    "TrainSetup",
    "WriteError",
    "build",
    "check",
    "create_run_dir",
    "environment",
    "evaluate_run",
    "evaluator",
    "initialise",
    "load_config",
    "load_model",
    "load_tokenizer",
    "prepare",
    "refuse_changes",
    "train",
    "train_step",
]

_MODULES = {  # name: its module
    "WriteError": "seqzoo.data.atomic_io",
    "InitFromError": "seqzoo.training.init_from",
    "Diverged": "seqzoo.training.loop",
    "check": "seqzoo.training.loop",
    "train": "seqzoo.training.loop",
    "evaluate_run": "seqzoo.training.restore",
    "load_model": "seqzoo.training.restore",
    "load_tokenizer": "seqzoo.training.restore",
    "CheckpointError": "seqzoo.training.run.checkpoint",
    "Checkpoints": "seqzoo.training.run.checkpoint",
    "create_run_dir": "seqzoo.training.run.run_dir",
    "environment": "seqzoo.training.run.run_dir",
    "load_config": "seqzoo.training.run.run_dir",
    "refuse_changes": "seqzoo.training.run.run_dir",
    "Interrupted": "seqzoo.training.run.signals",
    "TrainSetup": "seqzoo.training.state",
    "build": "seqzoo.training.state",
    "initialise": "seqzoo.training.state",
    "prepare": "seqzoo.training.state",
    "evaluator": "seqzoo.training.step",
    "train_step": "seqzoo.training.step",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
