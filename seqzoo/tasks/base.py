"""The contract of a task: batches addressed by step.

A batch is a pure function of (seed, index), so resuming, changing the mesh and slicing over hosts need no iterator state.
"""

from typing import Any, NamedTuple, Protocol

from jax import Array

from seqzoo.registry import Registry

registry = Registry("task")
register = registry.register


class BatchSpec(NamedTuple):
    """The static side of a batch: hashable, so that one jitted function per spec makes all its batches."""

    split: str  # "train", or the name of an evaluation slice
    segment: int  # which of the task's data segments
    batch: int  # rows
    length: int  # tokens per row


class Slice(NamedTuple):
    """A named evaluation set: `batches` batches of one spec."""

    name: str
    spec: BatchSpec
    batches: int
    chance: float | None  # accuracy of a guesser that knows the task but not the example, in [0, 1]; None: there is no such level
    settings: dict[str, Any]  # what sets the slice apart, for tables and plots: {"pairs": 8, "length": 64}
    bytes_per_target: float = 1.0  # bytes of text that a target stands for: bits per byte = loss / ln 2 / this


class Task(Protocol):
    """What the trainer asks of a task. Tasks know nothing of models."""

    vocab_size: int
    max_length: int

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step` (host Python)."""

    def batch(self, spec: BatchSpec, index: Array) -> dict[str, Array]:
        """The batch of that spec at `index` (a step, or an evaluation batch's number; may be traced).

        Keys: "tokens" [b, t] int32, "targets" [b, t] int32, "weights" [b, t] float32 (0: not scored), and where documents are
        packed "segment_ids" [b, t] int32.
        """

    def slices(self) -> tuple[Slice, ...]:
        """The named evaluation sets."""

    def notes(self) -> tuple[str, ...]:
        """What a user should be told once: examples dropped at the end of an epoch, and the like."""
