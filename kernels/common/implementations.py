"""The implementations of an op: the choice of one, the same way for all ops, and the log of choices that `explain` reads."""

import contextvars
import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp


class Choice(NamedTuple):
    """Names of implementations."""

    forward: str  # without gradients
    backward: str  # with gradients: its forward pass, too


Times = Mapping[str, float | None]  # milliseconds by implementation; None: faster than the others, but the time is not recorded
TuningTable = Mapping[str, Mapping[str, Mapping[tuple[int, ...], Mapping[str, Times]]]]  # by platform, kind, sizes and pass

T = TypeVar("T")

_log: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("seqzoo_log", default=None)


def explain(function: Callable, *args: Any, **kwargs: Any) -> list[str]:
    """Decisions of the ops inside function(*args, **kwargs): implementation and sharding, one line each, in the order of tracing.

    Nothing is computed. Call it under the mesh in question (`jax.set_mesh`). Arrays may be `jax.ShapeDtypeStruct`. A jitted
    function that was called with the same shapes before is not traced again and reports nothing: give the plain function.
    """
    lines: list[str] = []
    token = _log.set(lines)
    try:
        jax.eval_shape(lambda args, kwargs: function(*args, **kwargs), args, kwargs)
    finally:
        _log.reset(token)
    return lines


def record(op: str, *decisions: str) -> None:
    """Adds decisions of an op to the log, if `explain` is running."""
    lines = _log.get()
    if lines is not None:
        lines.append(f"{op}: {', '.join(decisions)}")


def state_dtype(*arrays):
    """The dtype of states and accumulation: promote(float32, the inputs' dtypes)."""
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


def platform() -> str:
    """Platform that a computation traced now will run on, as far as is known before it runs: "cpu", "gpu" or "tpu"."""
    device = getattr(jax.config, "jax_default_device", None)
    return getattr(device, "platform", device) or jax.default_backend()


def on_cpu() -> bool:
    """True if that is a CPU."""
    return platform() == "cpu"


def fastest(table: TuningTable, kind: str, sizes: Sequence[int], otherwise: str) -> Choice:
    """The fastest implementations on this platform at the nearest measured sizes (by their ratios); `otherwise` if none is known.

    Args:
      table: the op's tuning table, written by `python -m benchmarks.tune`.
      kind: a key of the table: the variant of the op.
      sizes: in the order of the table.
      otherwise: the implementation for a platform or kind that the table does not have.
    """
    measured = table.get(platform(), {}).get(kind)
    if not measured:
        return Choice(otherwise, otherwise)
    distance = lambda known: sum(math.log(a / b) ** 2 for a, b in zip(known, sizes, strict=True))
    return fastest_of(measured[min(measured, key=distance)])


def fastest_of(passes: Mapping[str, Times]) -> Choice:
    """The fastest implementations of a table's entry: of its times without gradients ("forward") and with them ("backward")."""
    forward, backward = (min(passes[which], key=lambda name: passes[which][name] or 0.0) for which in ("forward", "backward"))
    return Choice(forward, backward)


def choose_pair(
    op: str,
    implementation: str | Sequence[str] | None,
    known: Collection[str],
    default: Sequence[Choice],
    check: Callable[[Choice], Any] = lambda choice: None,
) -> Choice:
    """The first choice that `check` does not refuse.

    Args:
      op: its name, for `explain` and errors.
      implementation: a name for both passes, several to be tried in order, or None for `default`.
      known: all names.
      default: choices to be tried in order.
      check: raises NotImplementedError("why") for a choice that cannot take the inputs.
    Raises:
      ValueError: a name is unknown (the nearest is given).
      NotImplementedError: every choice was refused (why).
    """
    names = (implementation,) if isinstance(implementation, str) else implementation
    for name in names or ():
        _check_known(op, name, known)
    refusals = []
    for choice in default if names is None else [Choice(name, name) for name in names]:
        try:
            check(choice)
        except NotImplementedError as why:
            refusals.append(f"{choice.backward} refused: {why}")
            continue
        suffixes = ("", " with gradients")
        chosen = (f"implementation={name!r}{suffix}" for name, suffix in zip(dict.fromkeys(choice), suffixes, strict=False))
        record(op, *chosen, *refusals)
        return choice
    raise NotImplementedError(f"{op}: {'; '.join(refusals) or 'implementation=() is empty, wanted a name, several, or None'}")


def choose(op: str, implementation: str | Sequence[str] | None, table: Mapping[str, T], default: str) -> T:
    """The entry of `table` that `implementation` names, for an op whose implementations take all inputs; None takes `default`.

    Of several names the first is taken, as none is refused. Raises ValueError with the nearest name for an unknown one.
    """
    names = (implementation,) if isinstance(implementation, str) else (default,) if implementation is None else implementation
    for name in names:
        _check_known(op, name, table)
    if not names:
        raise ValueError(f"{op}: implementation={implementation!r} is empty, wanted a name, several, or None")
    name = names[0]
    record(op, f"implementation={name!r}")
    return table[name]


def _check_known(op, name, table):
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{op}: implementation={name!r} is unknown; it is None or one of {sorted(table)}.{hint}")
