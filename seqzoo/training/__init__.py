"""One trainer for all: `train(experiment, folder)` starts or resumes a run, `evaluate_run(folder)` evaluates its checkpoints.

loop             the training run from top to bottom
step             one training step, one evaluation batch
state            from an experiment to a training state: a plain dict of arrays with shardings
init_from        initial parameters from another run or a converted checkpoint
loss             cross-entropy, chunked over time
input_pipeline   batches made on the devices, or read on the host ahead of time
module_norms     norms of gradient and parameters by module
restore          the trained model of a run folder
optim/           update rules, schedules, gradient accumulation, skipped steps, sharding of the optimizer's state
run/             run folders, checkpoints, metrics, signals, processes, profiling, throughput
"""

from seqzoo.data.atomic_io import WriteError
from seqzoo.training.init_from import InitFromError
from seqzoo.training.loop import Diverged, check, train
from seqzoo.training.restore import evaluate_run, load_model
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
    "prepare",
    "refuse_changes",
    "train",
    "train_step",
]
