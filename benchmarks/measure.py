"""Measurement: compiling, refusing, timing, and the record of machine and versions."""

import os
import platform
import random
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # rms(difference) / rms(reference), float32 sums in another order over thousands of tokens
# Variables that change allocation, threads or compilation, hence times.
TELLING = (
    "GLIBC_TUNABLES",
    "MALLOC_",
    "LD_PRELOAD",
    "XLA_",
    "JAX_",
    "TF_XLA_",
    "OMP_",
    "OPENBLAS_",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32",
)


class Refused(Exception):
    """A candidate that is not timed, with the reason."""


def passes(function, arrays) -> dict:
    """The two jitted computations that are timed: {"forward": f(arrays), "forward+backward": (f(arrays), all its gradients)}."""
    output = jax.eval_shape(function, *arrays)
    cotangent = jax.random.normal(jax.random.key(1), output.shape, output.dtype)

    def both(*arrays):
        y, pull = jax.vjp(function, *arrays)
        return (y, *pull(cotangent))

    return {"forward": jax.jit(lambda *arrays: (function(*arrays),)), "forward+backward": jax.jit(both)}


def compiled(function, arrays):
    """(executable, bytes it takes beyond its arguments, seconds to compile); Refused where the machine has too little memory."""
    begin = time.perf_counter()
    executable = function.lower(*arrays).compile()
    seconds = time.perf_counter() - begin
    memory = executable.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
    free = free_memory()
    if needed > 0.8 * free:
        raise Refused(f"needs {needed / 2**30:.1f} GiB, the device has {free / 2**30:.1f} GiB free")
    return executable, needed, seconds


def free_memory() -> int:
    """Bytes that the default device could still hand out."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def worst_error(actual, wanted) -> float:
    """Largest rms(difference) / rms(wanted) over the arrays of a result; infinite where one is not finite."""
    errors = []
    for a, w in zip(actual, wanted, strict=True):
        a, w = np.asarray(a, np.float64), np.asarray(w, np.float64)
        if not np.isfinite(a).all():
            return float("inf")
        errors.append(np.sqrt(np.mean((a - w) ** 2)) / max(np.sqrt(np.mean(w**2)), 1e-30))
    return float(max(errors))


def interleaved(executables: dict, arrays, repeats: int) -> dict[str, list[float]]:
    """Seconds per call, all samples: one call of each in turn, `repeats` rounds after one that is not counted.

    Taking turns spreads a change in the machine's load over all of them; a new order each round, the caches that others leave.
    """
    samples, order, draw = {name: [] for name in executables}, list(executables), random.Random(0)
    for counted in (False, *(True,) * repeats):
        draw.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            jax.block_until_ready(executables[name](*arrays))
            if counted:
                samples[name].append(time.perf_counter() - begin)
    return samples


def surroundings() -> dict:
    """Machine, versions, commit and environment: what one must know to compare two recordings."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device.device_kind,
            "backend": jax.default_backend(),
            "load": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jax.lib.__version__,
            "numpy": np.__version__,
        },
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TELLING)},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _git(*arguments) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def host(result) -> list[np.ndarray]:
    """A result's arrays, off the device."""
    return [np.asarray(x) for x in result]
