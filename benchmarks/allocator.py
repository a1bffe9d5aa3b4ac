"""The memory of one step kept for the next on CPUs: a training run with `keep_freed_memory`, and the same without.

    python -m benchmarks.allocator

Each run has a process of its own, as the setting holds for a whole process; the two take turns. The ratio is that of the medians of
tokens per second, above 1 where keeping memory is faster. Both end with the same numbers.
"""

import io
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import tyro
from rich.console import Console

from benchmarks import measure
from seqzoo.config import Experiment, Model, Optimizer, Training
from seqzoo.training import train
from seqzoo.training.run.allocator import keep_freed_memory


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    mixers: tuple[str, ...] = ("gla(heads=1)", "softmax(heads=1)", "gated_deltanet(heads=1)")
    """Mixers to train, each behind a short convolution."""
    steps: int = 200
    """Training steps of a run."""
    turns: int = 3
    """Runs of each kind and mixer."""
    kept: bool | None = None
    """Only one run of the first mixer, with or without: what the processes of this script do."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "allocator_cpu.json"
    """Path of the JSON."""


def run(mixer: str, steps: int, kept: bool) -> dict:
    """Trains here; the loss and the tokens per second of the run."""
    if kept and not keep_freed_memory():
        raise SystemExit("error: this C library has no such settings; wanted glibc")
    experiment = Experiment(
        model=Model(d_model=64, depth=2, channel="none", layers=("base_conv", mixer)),
        task="mqar(vocab_size=128, length=64, pairs=8, batch_size=64, eval_examples=64)",
        optimizer=Optimizer(learning_rate=5e-3),
        training=Training(steps=steps, eval_every=steps, checkpoint_every=steps, log_every=20),
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = train(experiment, Path(folder) / "run", console=Console(file=io.StringIO()))
    return {"tokens_per_second": summary["tokens_per_second"], "loss": summary["final"]["pairs=8"]["loss"]}


def in_process(settings: Settings, mixer: str, kept: bool) -> dict:
    """The result of `run` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.allocator", "--mixers", mixer, "--steps", str(settings.steps), "--kept", str(kept)]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(settings: Settings) -> None:
    """Trains in turns, prints a line for each mixer, writes the JSON."""
    if settings.kept is not None:
        print(json.dumps(run(settings.mixers[0], settings.steps, settings.kept)))
        return
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name}, "mixers": {}}
    for mixer in settings.mixers:
        found: dict[str, list[dict]] = {"kept": [], "given back": []}
        for _ in range(settings.turns):
            for kind, runs in found.items():
                runs.append(in_process(settings, mixer, kind == "kept"))
        if len(losses := {one["loss"] for runs in found.values() for one in runs}) > 1:
            raise SystemExit(f"error: {mixer} has the losses {sorted(losses)}, wanted equal ones")
        kept, plain = (median(one["tokens_per_second"] for one in runs) for runs in found.values())
        record["mixers"][mixer] = {"runs": found, "ratio": kept / plain}
        print(f"{mixer}: {kept:,.0f} tokens/s kept, {plain:,.0f} given back; ratio {kept / plain:.2f}", flush=True)
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
