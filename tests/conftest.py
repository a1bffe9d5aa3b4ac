"""Test-wide settings: 8 CPU devices, strict rank promotion, warnings as errors (pyproject), one tolerance table."""

import os

# Most of the time goes to compiling what runs once, on rows of a few tokens; LLVM's optimiser takes a third of it, for nothing.
# A later flag wins: XLA_FLAGS=--xla_backend_optimization_level=3 compiles as for users, and .ci/run does so in the slow tier.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
