"""Choosing an implementation of an op, the same way for all of them."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqzoo.kernels.common import notes


class Fastest(NamedTuple):
    """The fastest forms of an op."""

    forward: str  # where nothing is differentiated
    training: str  # forward and backward


Measured = Mapping[str, Mapping[str, Mapping[tuple[int, ...], tuple[str, str]]]]  # platform, kind, sizes: the fastest forms


def state_dtype(*arrays):
    """The dtype of states and accumulation: promote(float32, the inputs' dtypes)."""
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


def platform() -> str:
    """Where a computation traced now will run, as far as one can tell before it runs: "cpu", "gpu", "tpu"."""
    device = jax.config.jax_default_device
    return getattr(device, "platform", device) or jax.default_backend()


def on_cpu() -> bool:
    """Whether that is a CPU."""
    return platform() == "cpu"


def fastest(measured: Measured, kind: str, sizes: Sequence[int], otherwise: str) -> Fastest:
    """The forms that were fastest on this platform at the nearest sizes timed, as their ratios go; `otherwise` if none was.

    Args:
      measured: the op's table, written by `python -m benchmarks.choose`.
      kind: what else decides, beside sizes.
      sizes: in the order of the table.
    """
    times = measured.get(platform(), {}).get(kind)
    if not times:
        return Fastest(otherwise, otherwise)
    return Fastest(*times[min(times, key=lambda known: sum(math.log(a / b) ** 2 for a, b in zip(known, sizes, strict=True)))])


def forms(op: str, implementation: str | None, table: Mapping[str, Any], default: Fastest) -> Fastest:
    """The names of the forms to take: `implementation` for both, or `default` if that is None. Raises ValueError as `choose`."""
    names = default if implementation is None else Fastest(implementation, implementation)
    for name in set(names):
        _known(op, name, table)
    notes.record(
        op, *(f"implementation={name!r}" + said for name, said in zip(dict.fromkeys(names), ("", " with gradients"), strict=False))
    )
    return names


def choose(op: str, implementation: str | None, table: Mapping[str, Callable], default: str) -> Callable:
    """The callable that `implementation` names in `table`; None takes `default`.

    Raises ValueError with the nearest names when there is none such.
    """
    name = default if implementation is None else implementation
    _known(op, name, table)
    notes.record(op, f"implementation={name!r}")
    return table[name]


def _known(op, name, table):
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{op}: implementation={name!r} is unknown; it is None or one of {sorted(table)}.{hint}")
