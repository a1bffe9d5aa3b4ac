"""The cost of a grid of learning rates and seeds: separate runs, one comparison, two jobs, one vectorised step.

    python -m benchmarks.sweeps

Four ways to train the same twelve runs (four rates, three seeds) of one model on MQAR, in seconds from start to end:

    separate   twelve processes, one after the other, each with all cores
    shared     one comparison: the runs follow each other in one process and share one compilation
    jobs       the same comparison with --jobs N: N processes, each with its share of the cores
    vmap       `jax.vmap` of the step over all twelve: compilation and steps alone, without evaluations and checkpoints
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import tyro

from benchmarks import measure
from seqzoo import config, training
from seqzoo.training.hyperparameters import Hyperparameters
from seqzoo.training.state import initialiser


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    layers: tuple[str, ...] = ("base_conv(conv_size=3)", "gla(heads=1)")
    """Mixers of the model."""
    steps: int = 600
    """Steps of each run."""
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """Learning rates."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Values of training.seed."""
    jobs: int = 2
    """Processes of the way `jobs`."""
    turns: int = 1
    """Times that every way is measured, one after the other."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "sweeps_cpu.json"
    """Path of the JSON."""


def comparison(settings: Settings) -> config.Comparison:
    """The twelve runs."""
    base = config.Experiment(
        model=config.Model(d_model=64, depth=2, channel="none", tie_embeddings=False, layers=settings.layers),
        task="mqar(vocab_size=128, length=64, pairs=8, eval_pairs=(4, 8, 16), batch_size=64, eval_examples=256)",
        training=config.Training(steps=settings.steps, eval_every=100, checkpoint_every=settings.steps, log_every=50, keep=1),
    )
    return config.Comparison(base=base, axes={"optimizer.learning_rate": settings.rates, "training.seed": settings.seeds})


def command(*arguments: str) -> None:
    """`train.py` in a process of its own; raises CalledProcessError with what it printed."""
    environment = os.environ | {"PYTHONPATH": str(measure.ROOT)}
    words = [sys.executable, str(measure.ROOT / "train.py"), *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"train.py {' '.join(arguments)} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")


def separate(settings: Settings, path: Path) -> None:
    """Twelve processes."""
    for rate in settings.rates:
        for seed in settings.seeds:
            one = ("--optimizer.learning-rate", f"{rate}", "--training.seed", f"{seed}", "--run.folder", f"{path}-separate")
            command(f"{path}-base.py", *one)


def vectorised(settings: Settings) -> None:
    """Compilation and steps of all runs at once."""
    experiments = [experiment for _, experiment in comparison(settings).experiments()]
    setup = training.prepare(experiments[0])
    numbers = [setup._replace(experiment=experiment).hyperparameters for experiment in experiments]
    chosen = Hyperparameters(*(jnp.asarray(column) for column in zip(*numbers, strict=True)))
    step, spec = training.train_step(setup).__wrapped__, setup.task.spec(0)
    with jax.set_mesh(setup.mesh):
        state = jax.jit(jax.vmap(lambda seed: initialiser(setup)(seed, {})))(chosen.seed)
        together = jax.jit(jax.vmap(lambda state, chosen: step(state, spec, None, chosen)), donate_argnums=0)
        for _ in range(settings.steps):
            state, metrics = together(state, chosen)
        jax.block_until_ready((state, metrics))


def main(settings: Settings) -> None:
    """Measures every way in turn, prints a line for each, writes the JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep"
        whole = comparison(settings)
        written = {"": whole, "-base": whole.base}
        for name, each in written.items():
            load = f"from seqzoo.config import load_json\n\nconfig = load_json({f'{path}{name}.json'!r})\n"
            Path(f"{path}{name}.json").write_text(each.model_dump_json(), encoding="utf-8")
            Path(f"{path}{name}.py").write_text(load, encoding="utf-8")
        ways = {
            "separate": lambda: separate(settings, path),
            "shared": lambda: command(f"{path}.py", "--run.folder", f"{path}-shared"),
            "jobs": lambda: command(f"{path}.py", "--run.folder", f"{path}-jobs", "--jobs", f"{settings.jobs}"),
            "vmap": lambda: vectorised(settings),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(settings.turns):
            for way, run in ways.items():
                begin = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - begin)
                print(f"{way}: {seconds[way][-1]:.1f} s", flush=True)
    ratios = {way: median(seconds[way]) / median(seconds["separate"]) for way in ways}
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name}}
    record |= {"seconds": seconds, "of the time of separate runs": ratios}
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{way} {ratio:.2f}" for way, ratio in ratios.items()))


if __name__ == "__main__":
    main(tyro.cli(Settings))
