"""What ops decide while they are traced, for whoever asks: the implementation taken, and how a mesh cuts the op."""

import contextvars
from collections.abc import Callable
from typing import Any

import jax

_open: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("seqzoo_notes", default=None)


def record(op: str, *decisions: str) -> None:
    """Notes decisions of an op, if anybody is listening."""
    lines = _open.get()
    if lines is not None:
        lines.append(f"{op}: {', '.join(decisions)}")


def explain(function: Callable, *args: Any, **kwargs: Any) -> list[str]:
    """What the ops inside function(*args, **kwargs) decide, a line per decision, in the order of tracing; nothing is computed.

    Call it under the mesh in question (`jax.set_mesh`). Arrays may be `jax.ShapeDtypeStruct`. A function that is jitted and was
    called with the same shapes before is not traced again, and so tells nothing: give the plain function.
    """
    lines: list[str] = []
    token = _open.set(lines)
    try:
        jax.eval_shape(lambda args, kwargs: function(*args, **kwargs), args, kwargs)
    finally:
        _open.reset(token)
    return lines
