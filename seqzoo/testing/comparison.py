"""The tolerances, and the comparison of two trees of arrays."""

from typing import Any

import jax
import numpy as np

# Largest accepted error, as rms(difference) / rms(reference).
RELATIVE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2e-2}


def rms(x: Any) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))) if np.size(x) else 0.0


def error(actual: Any, wanted: Any, scale: float = 0.0) -> float:
    """rms(actual - wanted) / max(rms(wanted), scale); infinite for a NaN."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, f"shape {actual.shape}, wanted {wanted.shape}"
    if not np.all(np.isfinite(actual)):
        return float("inf")
    difference = rms(actual - wanted)
    return 0.0 if difference == 0 else difference / max(rms(wanted), scale, 1e-30)


def assert_close(actual: Any, wanted: Any, *, tolerance: float = RELATIVE["float32"], scale: float = 0.0, what: str = "") -> None:
    """Raises AssertionError unless every leaf of two trees is within `tolerance`; the message names the leaves that are not.

    Args:
      actual, wanted: trees of arrays of one structure.
      tolerance: bound of rms(actual - wanted) / max(rms(wanted), scale).
      scale: rms of a comparable quantity, for leaves that nearly vanish.
      what: begins the message.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(wanted)
    leaves, other = jax.tree.flatten(actual)
    assert tree == other, f"{what}: trees differ: {other}, wanted {tree}"
    bad = []
    for leaf, (path, reference) in zip(leaves, flat, strict=True):
        if not (found := error(leaf, reference, scale)) <= tolerance:
            largest = np.max(np.abs(np.asarray(leaf, np.float64) - np.asarray(reference, np.float64)))
            bad.append(f"{jax.tree_util.keystr(path)} {np.shape(reference)}: {found:.2e}, largest difference {largest:.2e}")
    assert not bad, f"{what}: relative rms error above {tolerance:.0e}: {'; '.join(bad)}"
