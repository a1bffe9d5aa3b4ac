"""Test-wide settings: 8 CPU devices, strict rank promotion, warnings as errors (pyproject), one tolerance table."""

import gc
import os
from pathlib import Path

# Most of the time goes to compiling what runs once, on rows of a few tokens. XLA compiles four times as fast without LLVM's
# optimiser, without the newer emitters of fused loops, whose MLIR passes take most of it, and with one LLVM module per program.
# An optimisation level in XLA_FLAGS compiles as for users: .ci/run sets --xla_backend_optimization_level=3 in the slow tier.
FAST = (
    "--xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true "
    "--xla_cpu_parallel_codegen_split_count=1 "
)


def xla_flags(given: str) -> str:
    """The flags of a test process, from those in the environment."""
    fast = "" if "xla_backend_optimization_level" in given else FAST
    return f"{fast}{given} --xla_force_host_platform_device_count=8"


os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (after its flags)

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
