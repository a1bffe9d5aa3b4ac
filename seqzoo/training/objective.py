"""Objective of an evaluation, by which runs are ranked, tabled and drawn: accuracy, or bits per byte for text."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

Evaluation = Mapping[str, Mapping[str, Any]]  # {eval set: its numbers}


class Objective(NamedTuple):
    """One number of an evaluation by which results are compared."""

    name: str  # among an evaluation's numbers
    higher: bool  # more is better
    worst: float  # value of a run without a result

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    def mean(self, evaluation: Evaluation) -> float:
        """The mean over evaluation sets; every evaluation set counts the same."""
        return fmean(numbers[self.name] for numbers in evaluation.values())

    def sort_key(self, value: float) -> float:
        """A number that is larger for a better value."""
        return value if self.higher else -value


ACCURACY = Objective("accuracy", higher=True, worst=0.0)
BITS_PER_BYTE = Objective("bits_per_byte", higher=False, worst=8.0)


def objective_of(evaluations: Iterable[Evaluation]) -> Objective:
    """Bits per byte if every evaluation set of every evaluation has them, else the accuracy."""
    eval_sets = [numbers for evaluation in evaluations for numbers in evaluation.values()]
    of_text = eval_sets and all(math.isfinite(numbers.get(BITS_PER_BYTE.name, math.nan)) for numbers in eval_sets)
    return BITS_PER_BYTE if of_text else ACCURACY
