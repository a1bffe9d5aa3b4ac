"""Memory of a training step on each of eight devices, by mesh: parameters and optimizer state, and XLA's temporaries.

    python -m benchmarks.memory

The step is compiled for eight CPU devices and not run; the numbers are XLA's plan for one device (`memory_analysis`).
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}".strip()

import jax  # noqa: E402  (the number of devices is read when JAX is imported)
import tyro  # noqa: E402

from benchmarks import measure  # noqa: E402
from seqzoo import training  # noqa: E402
from seqzoo.config import Experiment, replace  # noqa: E402

MESHES = (
    {"fsdp": 1},
    {"replica": 8, "fsdp": 1},
    {"fsdp": 8},
    {"seq": 8, "fsdp": 1},
    {"tensor": 8, "fsdp": 1},
    {"fsdp": 2, "seq": 2, "tensor": 2},
)


@dataclass(frozen=True)
class Settings:
    """The model and its batch."""

    layers: tuple[str, ...] = ("gla(heads=8)", "mamba2(head_dim=64, state=64)", "softmax(heads=8)")
    """Spec strings, cycled over depth."""
    depth: int = 6
    """Blocks."""
    d_model: int = 256
    """Width."""
    task: str = "mqar(vocab_size=8192, length=2048, pairs=64, batch_size=8, eval_pairs=64, eval_length=2048, eval_batch_size=8)"
    """Task whose first batch gives the shapes."""
    remat: str = "full"
    """Rematerialisation of a block in the backward pass, as in `model.remat`."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "memory_cpu.json"
    """Path of the JSON."""


def main(settings: Settings) -> None:
    """Compiles the step for every mesh, prints a line each, writes the JSON."""
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name}, "devices": DEVICES, "meshes": []}
    for sizes in MESHES:
        model = {f"model.{key}": getattr(settings, key) for key in ("layers", "depth", "d_model", "remat")}
        chosen = {f"mesh.{axis}": size for axis, size in sizes.items()}
        setup = training.prepare(replace(Experiment(), {**model, **chosen, "task": settings.task}))
        with jax.set_mesh(setup.mesh):
            planned = training.train_step(setup).lower(setup.abstract, setup.task.spec(0)).compile().memory_analysis()
        result = {"mesh": sizes, "state_bytes": planned.argument_size_in_bytes, "temporary_bytes": planned.temp_size_in_bytes}
        print(f"{sizes}: state {result['state_bytes'] / 2**20:.0f} MiB, temporaries {result['temporary_bytes'] / 2**20:.0f} MiB")
        record["meshes"].append(result)
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
