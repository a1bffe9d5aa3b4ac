"""Choosing an implementation of an op, the same way for all of them."""

import difflib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from seqzoo.kernels.common import notes


def state_dtype(*arrays):
    """The dtype of states and accumulation: promote(float32, the inputs' dtypes)."""
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


def on_cpu() -> bool:
    """Whether a computation traced now will run on a CPU, as far as one can tell before it runs."""
    device = jax.config.jax_default_device
    platform = getattr(device, "platform", device) or jax.default_backend()
    return platform == "cpu"


def choose(op: str, implementation: str | None, table: Mapping[str, Callable], default: str) -> Callable:
    """The callable that `implementation` names in `table`; None takes `default`.

    Raises ValueError with the nearest names when there is none such.
    """
    name = default if implementation is None else implementation
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{op}: implementation={name!r} is unknown; it is None or one of {sorted(table)}.{hint}")
    notes.record(op, f"implementation={name!r}")
    return table[name]
