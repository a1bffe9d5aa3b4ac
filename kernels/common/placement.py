"""How an ambient mesh cuts an op: rows over (replica, fsdp), heads or channels over tensor, time over seq.

A mesh axis that does not divide what it would cut stays unused: its devices repeat the work, and `explain` says so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType

from seqzoo.kernels.common import notes

BATCH, HEADS, TIME = ("replica", "fsdp"), ("tensor",), ("seq",)
AXES = (*BATCH, *TIME, *HEADS)


class Layout(NamedTuple):
    """The mesh axes that cut an op's rows (b), heads or channels (h) and time (t); () where nothing does."""

    b: tuple[str, ...] = ()
    h: tuple[str, ...] = ()
    t: tuple[str, ...] = ()
    free: frozenset[str] = frozenset()  # the axes that nobody holds yet, used or not
    pieces: int = 1  # into how many pieces time is cut

    @property
    def manual(self) -> frozenset[str]:
        """The axes that an op takes over: all that are free, or none if it uses none and so stays plain local code."""
        return self.free if self.b or self.h or self.t else frozenset()

    @property
    def time(self) -> str | None:
        """The mesh axis that cuts time, or None."""
        return self.t[0] if self.t else None

    def spec(self, letters: str, shape: Sequence[int] | None = None) -> jax.P:
        """Where an array lies whose axes are "b t h ." say: b, t, h are cut as above, other letters are whole, and so is size 1."""
        named = letters.split()
        sizes = [None] * len(named) if shape is None else shape
        cut = {"b": self.b, "t": self.t, "h": self.h}
        return jax.P(*(None if size == 1 else cut.get(letter) or None for letter, size in zip(named, sizes, strict=True)))


def plan(op: str, *, b: int = 1, t: int = 1, h: Sequence[int] = ()) -> Layout:
    """What the ambient mesh (`jax.set_mesh`) cuts of an op.

    Args:
      op: its name.
      b, t: rows and tokens.
      h: counts of heads or channels that are cut together; a count of 1 is shared by all pieces.
    Returns:
      The layout; an empty one without a mesh, and where the caller's own `shard_map` holds the axes already.
    Raises:
      ValueError: one of the axes is of type Explicit.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = {} if mesh.empty else dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for axis in AXES:
        if types.get(axis) == AxisType.Explicit:
            raise ValueError(
                f"{op}: mesh axis {axis!r} has type Explicit, wanted Auto: make the mesh with "
                f"axis_types=(jax.sharding.AxisType.Auto,) * {len(types)}"
            )
    free = {axis: mesh.shape[axis] for axis in AXES if types.get(axis) == AxisType.Auto}
    said = []

    def cut(what, axes, counts):
        used, ways = [], 1
        for axis in axes:
            size = free.get(axis, 1)
            if size > 1 and counts and all(count and count % (ways * size) == 0 for count in counts):
                used, ways = [*used, axis], ways * size
                said.append(f"{what} over {axis}={size}")
            elif size > 1:
                said.append(f"{axis}={size} unused ({what}: {', '.join(map(str, counts)) or 'none'})")
        return tuple(used)

    rows = cut("rows", BATCH, [b])
    heads = cut("heads", HEADS, [count for count in h if count > 1])
    time = cut("time", TIME, [t])
    notes.record(op, *(said or ["one piece"]))
    return Layout(rows, heads, time, frozenset(free), free[time[0]] if time else 1)
