"""Shared parts of the trainer's tests: a compilation cache, and the comparison of two runs.

Most of a tiny run is compilation, and most runs here compile the same.
"""

import hashlib

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from seqzoo import training
from seqzoo.training.run import metrics

SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """A compilation cache for the session, gone with it."""
    settings = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")), **SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX decides at the first compilation of a process whether there is one
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def digest():
    """digest(experiment, folder): SHA-256 over every leaf of the latest checkpoint."""

    def of(experiment, folder):
        state = training.Checkpoints(folder / "checkpoints").restore(training.prepare(experiment).abstract, print)
        leaves = jax.tree.leaves(state | {"rng": jax.random.key_data(state["rng"])})
        return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()

    return of


@pytest.fixture(scope="session")
def numbers():
    """numbers(folder): metrics.jsonl without what depends on the clock."""

    def of(folder):
        clocked = ("tokens_per_second", "mfu", "seconds")
        return [{k: v for k, v in line.items() if k not in clocked} for line in metrics.read(folder / "metrics.jsonl")]

    return of
