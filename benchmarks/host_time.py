"""The host's time per step: the trainer's loop against direct calls of an empty jitted step with the same leaves.

    python -m benchmarks.host_time

Both run the same compiled step, one that gives its state back unchanged, donated, with metrics of zeros, so that what is left is
the host's: here `for each step: state, metrics = step(state)`, there all that the loop does besides. They take turns, some steps
each; what counts is the median over the turns of seconds per step, and the ratio of the two.
"""

import io
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from benchmarks import measure
from seqzoo import training
from seqzoo.config import Experiment, replace
from seqzoo.training import loop
from seqzoo.training.programs import Program


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    leaves: int = 100
    """Parameter leaves at least; with AdamW's moments the state has three times as many."""
    steps: int = 400
    """Steps in a turn."""
    turns: int = 15
    """Turns of each."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "host_time_cpu.json"
    """Path of the JSON."""


def experiment(leaves: int, steps: int) -> Experiment:
    """An experiment with at least `leaves` parameter arrays, in layers that are not stacked."""
    for count in range(1, 100):
        values = {
            "model.layers": ("linear(heads=2)",) * count,
            "model.depth": count,
            "model.d_model": 16,
            "model.channel": "none",
            "task": "parity(length=4, eval_length=4, batch_size=2, eval_examples=2)",
            "training.steps": steps,
            "training.eval_every": 10**9,
            "training.checkpoint_every": 10**9,
            "training.log_every": 100,
            "mesh.fsdp": 1,
        }
        found = replace(Experiment(), values)
        if len(jax.tree.leaves(training.prepare(found).abstract["params"])) >= leaves:
            return found
    raise ValueError(f"leaves={leaves}, wanted fewer")


def turns(settings: Settings) -> tuple[training.TrainSetup, dict[str, list[float]]]:
    """Seconds per step of each turn, by name."""
    setup = training.prepare(experiment(settings.leaves, settings.steps))
    metrics = {name: jnp.zeros(()) for name in ("loss", "accuracy", "gradient_norm", "learning_rate")}
    empty = jax.jit(lambda state: ({**state, "step": state["step"] + 1}, metrics), donate_argnums=0)
    compiled = empty.lower(training.initialise(setup)).compile()
    program = Program(setup)
    program.evaluate = lambda _, eval_sets, *__, **___: {part.name: {"loss": 0.0, "accuracy": 0.0} for part in eval_sets}
    began = []

    def step(state, batch=None, hyperparameters=None):
        began.append(time.perf_counter())
        return compiled(state)

    def bare():
        state = training.initialise(setup)
        for _ in range(settings.steps):
            state, _ = step(state)

    def whole():
        with tempfile.TemporaryDirectory() as folder:
            program.compiled[setup.task.spec(0)] = step
            loop.Loop(setup, Path(folder), Console(file=io.StringIO()), program).run()

    seconds = {"empty": [], "loop": []}
    for _ in range(settings.turns):
        for name, turn in {"empty": bare, "loop": whole}.items():
            began.clear()
            turn()
            seconds[name].append((began[-1] - began[0]) / (settings.steps - 1))
    return setup, seconds


def main(settings: Settings) -> None:
    """Times both alternately, prints and writes the JSON."""
    setup, seconds = turns(settings)
    ratio = median(seconds["loop"]) / median(seconds["empty"])
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name}}
    record |= {"parameter_leaves": len(jax.tree.leaves(setup.abstract["params"])), "seconds_per_step": seconds, "ratio": ratio}
    print(", ".join(f"{name} {1e6 * median(each):.0f} us a step" for name, each in seconds.items()) + f"; ratio {ratio:.2f}")
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
