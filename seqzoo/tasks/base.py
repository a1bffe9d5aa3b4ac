"""The contract of a task: batches addressed by step.

A batch is a pure function of (seed, index), so resuming, changing the mesh and slicing over hosts need no iterator state.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from jax import Array

from seqzoo.specs import Registry, Settings

registry = Registry("task")
register = registry.register


SPLITS = ("train", "eval", "test")  # number i of them has key i of a task that draws its examples


class BatchSpec(NamedTuple):
    """The static side of a batch: hashable, so that one jitted function per spec makes all its batches."""

    split: str  # "train", "eval" (validation: learning rates and shapes are chosen by it) or "test" (only reported)
    segment: int  # which of the task's data segments
    batch: int  # rows
    length: int  # tokens per row


class EvalSet(NamedTuple):
    """A named evaluation set, of validation or of test: `batches` batches of one spec."""

    name: str
    spec: BatchSpec
    batches: int
    chance: float | None  # accuracy of a guesser that knows the task but not the example, in [0, 1]; None: not known
    settings: dict[str, Any]  # what sets the evaluation set apart, for tables and plots: {"pairs": 8, "length": 64}
    bytes_per_target: float | None = None  # of text: average bytes per target


class Task(Settings):
    """A source of batches, whose settings are its fields. Tasks know nothing of models."""

    on_host: ClassVar[bool] = False  # whether batches are read from files: `rows` on the host, instead of `batch` on the devices
    traced_seed: ClassVar[bool] = False  # whether `batch` works with a traced integer as `seed`: seeds then share a compilation

    if TYPE_CHECKING:  # a field in some tasks, computed in others
        vocab_size: Any = None
        """Number of token ids."""

    @property
    def max_length(self) -> int:
        """The longest example, in training or evaluation."""
        raise NotImplementedError

    @property
    def stateful(self) -> bool:
        """True if row r of a training batch continues in row r of the next."""
        return False

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step` (host Python)."""
        raise NotImplementedError

    def batch(self, spec: BatchSpec, index: Array) -> dict[str, Array]:
        """The batch of that spec at `index` (a step, or an evaluation batch's number; may be traced).

        Keys: "tokens" [b, t] int32, "targets" [b, t] int32, "weights" [b, t] float32 (0: not scored), and where documents are
        packed "segment_ids" [b, t] int32 and perhaps "positions" [b, t] int32.
        """
        raise NotImplementedError

    def rows(self, spec: BatchSpec, index: int, rows: slice) -> dict[str, np.ndarray]:
        """Those rows of the batch of that spec at `index`, keys as in `batch`. Several threads call it at once."""
        raise NotImplementedError

    def eval_sets(self) -> tuple[EvalSet, ...]:
        """The named evaluation sets for validation: evaluated during training, and what learning rates are chosen by."""
        raise NotImplementedError

    def test_sets(self) -> tuple[EvalSet, ...]:
        """The test sets, evaluated once, when a run has finished: names and shapes of `eval_sets`, other examples. () if none."""
        return ()

    def with_seed(self, seed: int | Array) -> Self:
        """The same task with another `seed`, if it has one; in a program the seed may be traced. Nothing is checked again."""
        if "seed" not in type(self).model_fields:
            return self
        values: dict[str, Any] = dict(self) | {"seed": seed}
        return self.model_construct(None, **values)

    def fingerprint(self) -> dict[str, str]:
        """Digests of the files that are read, by name: a run does not continue with other contents."""
        return {}

    def check(self) -> None:
        """Raises ValueError if batches or evaluation sets cannot be made. Called before a run has a folder; may read files."""

    def reads(self, folder: Path) -> bool:
        """True if the task would read files in that folder: a run there would change its own data."""
        return False

    def notes(self) -> tuple[str, ...]:
        """Lines to report once: examples dropped at the end of an epoch, and the like."""
        return ()
