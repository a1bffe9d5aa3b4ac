"""A training run small enough to do often, on one device unless a test asks for more."""

import io

from rich.console import Console

from seqzoo.config import Experiment, replace

TINY = {
    "model.d_model": 16,
    "model.depth": 1,
    "model.channel": "none",
    "model.layers": ("softmax(heads=2)",),
    "task": "mqar(vocab_size=32, length=16, pairs=2, batch_size=8, eval_pairs=(1, 2), eval_examples=16)",
    "optimizer.schedule": "cosine(warmup_steps=2)",
    "training.steps": 6,
    "training.eval_every": 3,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "mesh.fsdp": 1,
}


def tiny(**values) -> Experiment:
    """The tiny experiment with settings replaced; dots in paths are written as double underscores."""
    return replace(Experiment(), {**TINY, **{path.replace("__", "."): value for path, value in values.items()}})


def stopping(experiment: Experiment, steps: int) -> Experiment:
    """The same, but a start of it ends after so many steps."""
    return replace(experiment, {"training.stop_after_steps": steps})


def quiet() -> Console:
    """A console that is no terminal; `console.file.getvalue()` is what it printed."""
    return Console(file=io.StringIO(), width=200)
