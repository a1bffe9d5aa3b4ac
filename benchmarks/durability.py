"""The cost of durable checkpoints: a save with its files synced to the disk, and the same without.

    python -m benchmarks.durability --folder /somewhere/on/the/disk

Both write the same state with `Checkpoints`, in turns, each until its checkpoint counts; without, `os.fsync` does nothing. The
ratio depends on the disk that holds the folder. A run pays in the background: it waits only for a save that takes longer than the
time between two checkpoints.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import tyro

from benchmarks import measure
from seqzoo.training.run.checkpoint import Checkpoints


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    mebibytes: tuple[int, ...] = (1, 64)
    """Sizes of the state."""
    leaves: int = 30
    """Arrays in it."""
    turns: int = 15
    """Saves of each kind and size."""
    folder: Path = Path(tempfile.gettempdir())
    """Folder on the disk to measure."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "durability_cpu.json"
    """Path of the JSON."""


@contextmanager
def without_sync() -> Iterator[None]:
    """Context in which nothing is synced."""
    before, os.fsync = os.fsync, lambda _: None
    try:
        yield
    finally:
        os.fsync = before


def seconds(checkpoints: Checkpoints, state) -> float:
    """Time of one save, until it counts."""
    begin = time.perf_counter()
    checkpoints.save(state)
    checkpoints.wait()
    return time.perf_counter() - begin


def main(settings: Settings) -> None:
    """Saves in turns, prints a line for each size, writes the JSON."""
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": settings.out.name, "folder": None}, "sizes": []}
    for mebibytes in settings.mebibytes:
        width = mebibytes * 2**20 // 4 // settings.leaves
        params = {f"w{number}": jnp.full(width, number, jnp.float32) for number in range(settings.leaves)}
        times: dict[str, list[float]] = {"synced": [], "not synced": []}
        with tempfile.TemporaryDirectory(dir=settings.folder) as folder, Checkpoints(Path(folder) / "checkpoints") as checkpoints:
            checkpoints.folder.mkdir()
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
                {"params": params, "step": jnp.int32(0)},
            )
            checkpoints.resume(shapes, print)
            for step in range(1, 2 * settings.turns + 3):
                state = {"params": params, "step": jnp.int32(step)}
                if step % 2:
                    times["synced"].append(seconds(checkpoints, state))
                else:
                    with without_sync():
                        times["not synced"].append(seconds(checkpoints, state))
        synced, plain = (median(values[1:]) for values in times.values())  # the first one of each warms up
        record["sizes"].append({"mebibytes": mebibytes, "seconds": times, "ratio": synced / plain})
        print(f"{mebibytes} MiB: {1e3 * synced:.0f} ms synced, {1e3 * plain:.0f} ms not; ratio {synced / plain:.2f}")
    settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
