"""Test-wide settings: 8 CPU devices, strict rank promotion, warnings as errors (pyproject), one tolerance table."""

import gc
import os
from pathlib import Path

# Most of the time goes to compiling what runs once, on rows of a few tokens; LLVM's optimiser takes a third of it, for nothing.
# A later flag wins: XLA_FLAGS=--xla_backend_optimization_level=3 compiles as for users, and .ci/run does so in the slow tier.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

MAPS = Path("/proc/self/maps")


def pytest_runtest_teardown(item, nextitem):
    """Drops what was compiled before it holds too many pieces of memory: at Linux's 65,530 a process dies inside XLA.

    Only where another module or mixer begins, so that tests that share a compiled function find it, or count its compilations.
    """
    place = lambda item: item and (item.path, item.callspec.params.get("spec") if hasattr(item, "callspec") else None)
    if place(item) != place(nextitem) and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()
