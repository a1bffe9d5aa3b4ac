"""Shapes of mixers: the settings with which each is given a budget of memory, parameters or FLOPs.

    shapes = (Shape({"heads": 1}, {"expand_k": 1, "expand_v": 1}), Shape({"heads": 2}, {"expand_k": 2, "expand_v": 2}))

are one head of [w, w] and, if preferred less, two heads of [w, w], for the width w that meets the budget: `seqzoo.compare.sizing`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Measure = Literal["state_bytes", "parameters", "flops"]
"""A budget's unit: bytes of recurrent memory (`memory_bytes`), parameters of the model, or its forward FLOPs on one row."""

MEASURES: tuple[Measure, ...] = ("state_bytes", "parameters", "flops")
STATE: tuple[Measure, ...] = ("state_bytes",)  # for settings that enlarge the state and little else
WORK: tuple[Measure, ...] = ("parameters", "flops")  # for mixers whose state grows with the row


class Shape(NamedTuple):
    """A usual shape of a mixer: settings that are fixed, and settings that grow with a width w until a budget is met."""

    fixed: Mapping[str, Any]
    grown: Mapping[str, int] = MappingProxyType({})  # channels per w: a size becomes n w, a multiple of d_model n w / d_model
    measures: tuple[Measure, ...] = MEASURES  # that it is used for


def square_heads(*counts: int, step: int = 1) -> tuple[Shape, ...]:
    """Heads with a state of [step w, step w], as `expand_k` and `expand_v` set it."""
    return tuple(wide_heads(count, step, step) for count in counts)


def wide_heads(count: int, k: int, v: int) -> Shape:
    """Heads with a state of [k w, v w], as `expand_k` and `expand_v` set it."""
    return Shape({"heads": count}, {"expand_k": count * k, "expand_v": count * v})
