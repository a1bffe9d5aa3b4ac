"""What evaluations are ranked, tabled and drawn by: accuracy, or of text bits per byte."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

Evaluation = Mapping[str, Mapping[str, Any]]  # {slice: its numbers}


class Measure(NamedTuple):
    """One number of an evaluation that says how good it is."""

    name: str  # among an evaluation's numbers
    higher: bool  # whether more of it is better
    nothing: float  # what a run that ended without a result counts as

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    def mean(self, evaluation: Evaluation) -> float:
        """The mean over slices; every slice counts the same."""
        return fmean(numbers[self.name] for numbers in evaluation.values())

    def goodness(self, value: float) -> float:
        """A number that is larger where the value is better."""
        return value if self.higher else -value


ACCURACY = Measure("accuracy", higher=True, nothing=0.0)
BITS_PER_BYTE = Measure("bits_per_byte", higher=False, nothing=8.0)


def measure_of(evaluations: Iterable[Evaluation]) -> Measure:
    """Bits per byte if every slice of every evaluation has them, else the accuracy."""
    slices = [numbers for evaluation in evaluations for numbers in evaluation.values()]
    of_text = slices and all(math.isfinite(numbers.get(BITS_PER_BYTE.name, math.nan)) for numbers in slices)
    return BITS_PER_BYTE if of_text else ACCURACY
