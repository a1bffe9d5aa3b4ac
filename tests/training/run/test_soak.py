"""A long run: memory and reads per save and per evaluation do not grow with their number."""

import gc
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from helpers.tiny import tiny
from seqzoo import training
from seqzoo.training.run.checkpoint import Checkpoints
from seqzoo.training.run.metrics import Metrics

WARM, MANY = 1000, 10_000
PROC = Path("/proc/self")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (PROC / "io").is_file(), reason="needs Linux's counters of a process")]


def memory():
    """Bytes of this process in memory, after garbage is collected."""
    gc.collect()
    return int((PROC / "statm").read_text().split()[1]) * resource.getpagesize()


def bytes_read():
    """All bytes that this process has read from files so far."""
    return int((PROC / "io").read_text().split()[1])


def test_memory_does_not_grow_with_the_number_of_saves(tmp_path):
    make = jax.jit(lambda step: {"params": {"w": jnp.ones(16) * step}, "step": step})
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), make(jnp.int32(0)))
    with Checkpoints(tmp_path / "checkpoints", record=tmp_path / "saved.json") as checkpoints:
        checkpoints.resume(shapes, print)
        for step in range(1, MANY + 1):
            checkpoints.save(make(jnp.int32(step)))
            if step == WARM:
                before = memory()
        after = memory()
    print(f"{(after - before) / (MANY - WARM):.0f} bytes per save after the first {WARM}, of {before / 2**20:.0f} MiB")
    assert checkpoints.steps() == [MANY] and after <= 1.05 * before


def test_memory_and_reads_do_not_grow_with_the_number_of_evaluations(tmp_path):
    metrics = Metrics(training.prepare(tiny(training__keep_best=True, training__stop_above=0.9)), tmp_path, 0)
    results = {name: {"accuracy": 0.5, "loss": 1.0} for name in metrics.eval_sets}
    reads, begin = [], 0
    for step in range(1, MANY + 1):
        metrics.evaluation(step, results)
        assert metrics.best() == 1 and metrics.accuracy() == 0.5
        if step % WARM == 0:
            before, begin, now = memory() if step == WARM else before, bytes_read(), bytes_read() - begin
            reads.append(now)
    assert memory() <= 1.05 * before
    assert max(reads[1:]) <= 1.05 * reads[1], reads
    assert metrics.summarise(True, MANY, None)["step"] == MANY
