"""XLA flags of test processes. Imports nothing of JAX, which reads them when it is imported."""

# Most of the time goes to compiling what runs once, on rows of a few tokens. XLA compiles four times as fast without LLVM's
# optimiser, without the newer emitters of fused loops, whose MLIR passes take most of it, and with one LLVM module per program.
FAST = (
    "--xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def flags(devices: int, given: str = "") -> str:
    """Flags for a process with so many CPU devices. An optimisation level in `given` compiles as for users."""
    fast = "" if "xla_backend_optimization_level" in given else FAST
    return f"{fast} {given} --xla_force_host_platform_device_count={devices}"
