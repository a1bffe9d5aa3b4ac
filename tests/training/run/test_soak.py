"""A long run: memory and reads per save and per evaluation do not grow with their number."""

import gc
import os
import resource
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from helpers.tiny import tiny
from seqzoo import training
from seqzoo.training.run.checkpoint import Checkpoints
from seqzoo.training.run.metrics import Metrics

WARM, SAVES, MANY = 1000, 3000, 10_000  # 10,000 saves would take ten minutes
GROWTH = 2048  # bytes per save or evaluation that count as none: 10,000 of them are 20 MB; a leak in TensorStore was 19 KiB
PROC = Path("/proc/self")
pytestmark = [pytest.mark.exhaustive, pytest.mark.skipif(not (PROC / "io").is_file(), reason="needs Linux's counters of a process")]


def memory():
    """Bytes of this process in memory, after garbage is collected."""
    gc.collect()
    return int((PROC / "statm").read_text().split()[1]) * resource.getpagesize()


def bytes_read():
    """All bytes that this process has read from files so far."""
    return int((PROC / "io").read_text().split()[1])


@pytest.fixture
def memory_folder(tmp_path):
    """A folder in memory where there is one: on a disk, most of a small save is waiting for it."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_memory_does_not_grow_with_the_number_of_saves(memory_folder):
    make = jax.jit(lambda step: {"params": {"w": jnp.ones(16) * step}, "step": step})
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), make(jnp.int32(0)))
    with Checkpoints(memory_folder / "checkpoints", record=memory_folder / "saved.json") as checkpoints:
        checkpoints.resume(shapes, print)
        for step in range(1, SAVES + 1):
            checkpoints.save(make(jnp.int32(step)))
            if step % 250 == 0:
                gc.collect()  # Python does so rarely in a process with as many objects as a test session
            if step == WARM:
                before = memory()
        after = memory()
    assert checkpoints.steps() == [SAVES]
    assert after - before <= (SAVES - WARM) * GROWTH, f"{before} bytes after {WARM} saves, {after} after {SAVES}"


def test_memory_and_reads_do_not_grow_with_the_number_of_evaluations(tmp_path):
    metrics = Metrics(training.prepare(tiny(training__keep_best=True, training__stop_above=0.9)), tmp_path, 0)
    results = {name: {"accuracy": 0.5, "loss": 1.0} for name in metrics.eval_sets}
    reads = []
    for block in range(MANY // WARM):
        begin = bytes_read()
        for step in range(WARM * block + 1, WARM * block + WARM + 1):
            metrics.evaluation(step, results)
            assert metrics.best() == 1 and metrics.ended(step) in (None, "budget")
        reads.append(bytes_read() - begin)
        if block == 0:
            before = memory()
    assert memory() - before <= MANY * GROWTH
    assert max(reads) < WARM, f"an evaluation reads no file, but {reads} bytes were read in each {WARM} of them"
    assert metrics.summarise(results, MANY, None)["step"] == MANY
