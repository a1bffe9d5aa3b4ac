"""Memory of devices, and of arrays that do not exist yet."""

import math
import os
from collections.abc import Iterable
from typing import Any

import jax


def device_memory(devices: Iterable[Any]) -> int | None:
    """Bytes of memory that each of this process's devices among these may use; None if the backend does not tell.

    Devices of the backend "cpu" share the machine's memory.
    """
    mine = [device for device in devices if device.process_index == jax.process_index()]
    if mine and mine[0].platform == "cpu":
        told = hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys()
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mine) if told else None
    limits = [(device.memory_stats() or {}).get("bytes_limit", -1) for device in mine]
    return None if not limits or -1 in limits else min(limits)


def bytes_on_device(tree: Any) -> int:
    """Bytes of all arrays in a tree on each device; the leaves may be shapes, with or without shardings."""
    return sum(math.prod(_shard_shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shard_shape(leaf: Any) -> tuple[int, ...]:
    return leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
