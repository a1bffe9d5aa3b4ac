"""Model FLOPs utilisation (MFU): the fraction of the devices' peak that a training step uses for the model's own arithmetic.

    MFU = FLOPs of a training step / seconds of a step / (devices x peak FLOP/s of one)

The convention (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): a training step takes three times the forward pass, once
forward and twice backward. The forward pass is the definition's, `model.flops(batch, length)`: matrix products at 2mnk, causal
pairs only, the same for every kernel. Recomputation by `remat`, padding to chunks, the optimizer and elementwise work do not count.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from seqzoo.tasks.base import BatchSpec

TRAINING = 3  # FLOPs of a training step over those of the forward pass


class Peak(NamedTuple):
    """Dense FLOP/s of one device's matrix units, without the factor of structured sparsity."""

    half: float  # bfloat16 and float16
    single: float  # float32 as JAX multiplies it by default: TF32 on NVIDIA, bfloat16 passes on TPU


# By the beginning of jax.Device.device_kind; the longest that fits counts. NVIDIA: the data sheet of each product (H100 and H200:
# half of the figure "with sparsity"; B200 and GB200: the Blackwell architecture brief). TPU: cloud.google.com/tpu/docs, one page
# per version; v2, v3 and 7x have two JAX devices per chip, hence half of the chip's number; v4i: jax/_src/tpu_info.py.
PEAKS = {
    "NVIDIA GB200": Peak(2500e12, 1250e12),
    "NVIDIA B200": Peak(2250e12, 1100e12),
    "NVIDIA GH200": Peak(989.5e12, 494.7e12),
    "NVIDIA H200": Peak(989.5e12, 494.7e12),
    "NVIDIA H200 NVL": Peak(835.5e12, 417.5e12),
    "NVIDIA H100": Peak(989.5e12, 494.7e12),
    "NVIDIA H100 NVL": Peak(835.5e12, 417.5e12),
    "NVIDIA H100 PCIe": Peak(756.5e12, 378e12),
    "NVIDIA A100": Peak(312e12, 156e12),
    "NVIDIA L40S": Peak(362e12, 183e12),
    "NVIDIA L4": Peak(121e12, 60e12),
    "TPU v2": Peak(22.5e12, 22.5e12),
    "TPU v3": Peak(61.5e12, 61.5e12),
    "TPU v4": Peak(275e12, 275e12),
    "TPU v4 lite": Peak(137e12, 137e12),  # v4i
    "TPU v5 lite": Peak(197e12, 197e12),  # v5e
    "TPU v5e": Peak(197e12, 197e12),
    "TPU v5": Peak(459e12, 459e12),  # v5p
    "TPU v5p": Peak(459e12, 459e12),
    "TPU v6 lite": Peak(918e12, 918e12),  # v6e
    "TPU v6e": Peak(918e12, 918e12),
    "TPU7x": Peak(1153.5e12, 1153.5e12),
}


def peak(device_kind: str, dtype: Any) -> float | None:
    """Peak FLOP/s of one device in a computation of that dtype; None for a device or dtype without an entry, such as a CPU.

    Args:
      device_kind: `jax.devices()[0].device_kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite".
      dtype: of the matrix products' inputs.
    """
    words = f"{device_kind} ".replace("-", " ")
    fitting = [name for name in PEAKS if words.startswith(f"{name} ") and " MIG " not in words]  # MIG: a part of a device
    column = {2: "half", 4: "single"}.get(jnp.dtype(dtype).itemsize)
    return getattr(PEAKS[max(fitting, key=len)], column) if fitting and column else None


def training_flops(forward: Callable[[int, int], int]) -> Callable[[BatchSpec], int]:
    """FLOPs of a training step by its spec, computed once for each: `forward(batch, length)` is the model's `flops`."""
    return functools.cache(lambda spec: TRAINING * forward(spec.batch, spec.length))


def mfu(flops_per_second: float | None, devices: int, device_kind: str, dtype: Any) -> float | None:
    """Model FLOPs utilisation, 1 at the peak; None if no step was timed, or the device's peak is not known.

    Args:
      flops_per_second: of all devices together.
      devices: how many.
      device_kind: as in `peak`.
      dtype: of the computation.
    """
    most = peak(device_kind, dtype)
    return None if flops_per_second is None or most is None else flops_per_second / (devices * most)


def in_words(fraction: float | None) -> str:
    """ "41.3% MFU", or "MFU n/a" for an unknown device."""
    return "MFU n/a" if fraction is None else f"{fraction:.1%} MFU"
