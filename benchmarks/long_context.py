"""One long row on eight CPU devices, time sharded over seq, against the same on one device: equal numbers, an eighth of the memory.

    python -m benchmarks.long_context                       # layers at 65,536 tokens, a training step at 131,072; minutes

Forward and backward pass of one mixer, and a language model's loss and gradients as the trainer takes them of a row of text, each
compiled for one device and for a mesh with seq = 8. Memory is what XLA plans for one device: arguments, outputs and temporaries of
the compiled program. Errors are rms(difference) / rms(one device) of outputs and gradients.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()

import jax  # noqa: E402  (the number of devices is read when JAX is imported)
import numpy as np  # noqa: E402
import tyro  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks import measure  # noqa: E402
from seqzoo import mixers, training  # noqa: E402
from seqzoo.config import Experiment, replace  # noqa: E402
from seqzoo.model import sharding  # noqa: E402
from seqzoo.training import input_pipeline, step  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    mixers: tuple[str, ...] = ("gla(heads=2)", "mamba")
    """Spec strings."""
    length: int = 65536
    """Tokens, in one row."""
    d_model: int = 64
    """Width."""
    step_length: int = 131072
    """Tokens in the training step's row."""
    step_layers: tuple[str, ...] = ("gla(heads=2)",)
    """Its mixers, over two blocks."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "long_context_cpu.json"
    """Path of the JSON."""


def run(spec: str, settings: Settings) -> dict:
    """Memory per device and errors of one mixer."""
    graphdef, parameters = nnx.split(mixers.create(spec, settings.d_model, rngs=nnx.Rngs(0)))
    x, dy = (jax.random.normal(jax.random.key(i), (1, settings.length, settings.d_model)) for i in (1, 2))

    def step(parameters, x, dy):
        forward = lambda parameters, x: nnx.merge(graphdef, parameters)(x)[0]
        y, back = jax.vjp(forward, parameters, x)
        return y, *back(dy)

    def on(devices):
        mesh = sharding.make_mesh({"replica": 1, "fsdp": 1, "seq": devices, "tensor": 1}, sharding.RULES)
        with jax.set_mesh(mesh):
            placed = [jax.device_put(a, sharding.batch_sharding(mesh)) for a in (x, dy)]
            return outcome(step, (jax.device_put(parameters, jax.NamedSharding(mesh, jax.P())), *placed))

    return {"mixer": spec} | compared(on(1), on(DEVICES))


def train(settings: Settings) -> dict:
    """The same of a language model's loss and gradients."""

    def on(devices):
        values = {
            "model.layers": settings.step_layers,
            "model.d_model": settings.d_model,
            "model.remat": "full",
            "task": f"text(length={settings.step_length}, batch_size=1)",
            "training.loss_chunk": 512,
            "mesh.fsdp": 1,
            "mesh.seq": devices,
        }
        setup = training.prepare(replace(Experiment(), values))
        with jax.set_mesh(setup.mesh):
            _, batch = next(input_pipeline.train_batches(setup, 0, 1))
            gradients = lambda parameters, batch: step.gradients(setup, parameters, batch, None, jax.random.key(0))[:2]
            return outcome(gradients, (training.initialise(setup)["params"], batch))

    return {"layers": settings.step_layers, "tokens": settings.step_length} | compared(on(1), on(DEVICES))


def outcome(function, arguments):
    """(what the function gives, bytes that it needs on each device)."""
    compiled = jax.jit(lambda *a: function(*a)).lower(*arguments).compile()
    planned = compiled.memory_analysis()
    needed = planned.argument_size_in_bytes + planned.output_size_in_bytes + planned.temp_size_in_bytes
    return jax.tree.map(np.asarray, compiled(*arguments)), needed


def compared(one, cut) -> dict:
    """Memory per device and errors, from two outcomes."""
    rms = lambda a: float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))
    errors = jax.tree.map(lambda a, b: rms(a - b) / rms(a), one[0], cut[0])
    return {
        "bytes_per_device": {1: one[1], DEVICES: cut[1]},
        "ratio": one[1] / cut[1],
        "worst_error": max(jax.tree.leaves(errors)),
    }


def main(settings: Settings) -> None:
    """Runs every mixer, prints a line each, writes the JSON."""
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name}, "devices": DEVICES, "runs": []}
    for name, result in [*((spec, run(spec, settings)) for spec in settings.mixers), ("training step", train(settings))]:
        one, cut = (f"{size / 2**20:.0f} MiB" for size in result["bytes_per_device"].values())
        print(f"{name}: {one} on one device, {cut} on each of {DEVICES}; worst error {result['worst_error']:.1e}")
        record["runs"].append(result)
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
