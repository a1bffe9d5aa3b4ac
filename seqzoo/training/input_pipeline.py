"""Input pipeline: batches made on the devices, or read on the host ahead of time, each process its own rows."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.stages import Wrapped

from seqzoo.model import sharding
from seqzoo.tasks.base import BatchSpec, EvalSet, Task
from seqzoo.training.state import TrainSetup

AHEAD = 8  # batches that are ready on the host
THREADS = 2  # that read batches

Batch = dict[str, Array]


def on_device(setup: TrainSetup, spec: BatchSpec, index: Array, seed: int | Array) -> Batch:
    """The task's batch for that seed, made on the devices with its rows sharded over the data axes. Call it inside jit."""
    return _on_device(setup.task, setup.mesh, spec, index, seed)


def _on_device(task: Task, mesh: Mesh, spec: BatchSpec, index: Array, seed: int | Array) -> Batch:
    sharding.check_batch(mesh, spec.batch, spec.length, f"task {task}, {spec}")
    task = task.with_seed(seed) if task.traced_seed else task
    return jax.lax.with_sharding_constraint(task.batch(spec, index), sharding.batch_sharding(mesh))


def train_batches(setup: TrainSetup, first: int, end: int) -> Iterator[tuple[BatchSpec, Batch | None]]:
    """(spec, batch) of the steps from `first` to `end`; the batch is None if the step makes its own."""
    task = setup.train_task
    specs = map(task.spec, range(first, end))
    if task.on_host:
        read = _read(setup, task, lambda step: (task.spec(step), step), range(first, end))
        return ((spec, _shard(setup, spec, rows)) for spec, rows in zip(specs, read, strict=True))
    return ((spec, None) for spec in specs)


def eval_batches(setup: TrainSetup) -> Callable[[EvalSet, int | Array], Iterator[Batch]]:
    """A function from an evaluation set and the seed of its examples to its batches; each spec compiles once in a process."""
    if setup.task.on_host:
        read = lambda part: _read(setup, setup.task, lambda index: (part.spec, index), range(part.batches))
        return lambda part, seed: (_shard(setup, part.spec, rows) for rows in read(part))
    task: Any = setup.task.with_seed(0) if setup.task.traced_seed else setup.task
    make = _maker(task, setup.mesh)
    return lambda part, seed: (make(part.spec, jnp.int32(index), seed) for index in range(part.batches))


@lru_cache(maxsize=8)
def _maker(task: Task, mesh: Mesh) -> Wrapped:
    """The jitted function that makes a task's batches. Models share it: for MQAR it compiles as long as a small model's step."""
    return jax.jit(partial(_on_device, task, mesh), static_argnums=0, out_shardings=sharding.batch_sharding(mesh))


def _read(
    setup: TrainSetup, task: Task, address: Callable[[int], tuple[BatchSpec, int]], indices: range
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches at some indices, read by threads a few batches ahead; `address` gives spec and index."""
    import grain  # only tasks that read files need it

    def rows(index):
        spec, index = address(int(index))
        return task.rows(spec, index, _local_rows(setup, spec))

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.range(indices.start, indices.stop).map(rows).to_iter_dataset(options))


def _local_rows(setup: TrainSetup, spec: BatchSpec) -> slice:
    """The rows that this process's devices hold: the shortest slice with all of them."""
    where = sharding.batch_sharding(setup.mesh).addressable_devices_indices_map((spec.batch, spec.length))
    bounds = [index[0].indices(spec.batch) for index in where.values() if index is not None]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def _shard(setup: TrainSetup, spec: BatchSpec, rows: dict[str, np.ndarray]) -> Batch:
    """The global batch, of which this process has read `rows`."""
    own, where = _local_rows(setup, spec), sharding.batch_sharding(setup.mesh)

    def place(array: np.ndarray) -> Array:
        local = lambda index: array[slice(*(i - own.start for i in index[0].indices(spec.batch)[:2])), index[1]]
        return jax.make_array_from_callback((spec.batch, spec.length), where, local)

    return {name: place(array) for name, array in rows.items()}
