"""The one table of tolerances, and the one way to compare."""

import jax
import numpy as np

# Largest accepted error, as rms(difference) / rms(reference).
RELATIVE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2e-2}


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))) if np.size(x) else 0.0


def error(actual, wanted, scale: float = 0.0) -> float:
    """rms(actual - wanted) / max(rms(wanted), scale); infinite for a NaN."""
    actual, wanted = np.asarray(actual, np.float64), np.asarray(wanted, np.float64)
    assert actual.shape == wanted.shape, f"shape {actual.shape}, wanted {wanted.shape}"
    if not np.all(np.isfinite(actual)):
        return float("inf")
    difference = rms(actual - wanted)
    return 0.0 if difference == 0 else difference / max(rms(wanted), scale, 1e-30)


def assert_close(actual, wanted, *, tolerance: float = RELATIVE["float32"], scale: float = 0.0, what: str = ""):
    """Every leaf of two trees within `tolerance` of each other; the message names the worst leaf."""
    flat, tree = jax.tree_util.tree_flatten_with_path(wanted)
    leaves, other = jax.tree.flatten(actual)
    assert tree == other, f"{what}: trees differ: {other} against {tree}"
    errors = {jax.tree_util.keystr(path): error(a, w, scale) for a, (path, w) in zip(leaves, flat, strict=True)}
    bad = {name: f"{e:.2e}" for name, e in errors.items() if not e <= tolerance}
    assert not bad, f"{what}: relative rms error above {tolerance:.0e}: {bad}"
