"""Test-wide settings: 8 CPU devices, strict rank promotion, warnings as errors (pyproject), one tolerance table."""

import gc
import os
from pathlib import Path

from helpers import xla

# An optimisation level in XLA_FLAGS compiles as for users: .ci/run does so for a part of the law.
os.environ["XLA_FLAGS"] = xla.flags(8, os.environ.get("XLA_FLAGS", ""))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that stay: fewer passes over them save a fourteenth of a test's time.
gc.set_threshold(200_000, 20, 100)

MAPS = Path("/proc/self/maps")


def pytest_runtest_teardown(item, nextitem):
    """Drops what was compiled before it holds too many pieces of memory: at Linux's 65,530 a process dies inside XLA.

    Only where another module or mixer begins, so that tests that share a compiled function find it, or count its compilations.
    """
    place = lambda item: item and (item.path, item.callspec.params.get("spec") if hasattr(item, "callspec") else None)
    if place(item) != place(nextitem) and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()
