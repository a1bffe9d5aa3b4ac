"""Plateaus: does the validation curve of a run still gain?"""

import math

MIN_GAIN = 0.01  # default of training.min_gain
PART, FEWEST = 4, 2  # without a patience: no gain in the last quarter of the evaluations, at least two of them, is a plateau


class Gains:
    """The evaluations since the last gain. O(1) time and memory each.

    a_i and l_i are accuracy and loss of evaluation i, each the mean over the evaluation sets; the references A and L are at first
    those of the first evaluation.

        gain in accuracy:   a_i >= A + min_gain           then A = a_i
        gain in loss:       l_i <= (1 - min_gain) L       then L = l_i

    Either is a gain. The references only improve, and only by gains, so slow progress adds up to a gain, and noise below min_gain
    does not. The loss is there for tasks like MQAR, whose accuracy stays at guessing level for thousands of steps while the loss
    falls slowly. Where the accuracy is above 1 - min_gain there is nothing left to gain, although the loss may fall for ever.

    Args:
      min_gain: in (0, 1); choose it above the noise of an accuracy p over n scored tokens, sqrt(p (1 - p) / n).
      patience: evaluations without a gain that make a plateau; None: a quarter of those so far, rounded up, at least two.
    """

    def __init__(self, min_gain: float, patience: int | None):
        self.min_gain, self._patience = min_gain, patience
        self.evaluations = self.since = 0  # in all; since the last gain
        self._accuracy, self._loss = math.nan, math.nan  # the references
        self._last = math.nan  # accuracy of the last evaluation

    def add(self, accuracy: float, loss: float) -> None:
        """Adds an evaluation."""
        more, less = accuracy >= self._accuracy + self.min_gain, loss <= (1 - self.min_gain) * self._loss
        if more or not self.evaluations:
            self._accuracy = accuracy
        if less or not self.evaluations:
            self._loss = loss
        self.since = 0 if more or less or not self.evaluations else self.since + 1
        self.evaluations += 1
        self._last = accuracy

    @property
    def patience(self) -> int:
        """Evaluations without a gain that make a plateau."""
        return self._patience or max(FEWEST, math.ceil(self.evaluations / PART))

    @property
    def on_plateau(self) -> bool:
        """True if the last `patience` evaluations brought no gain."""
        return self.since >= self.patience

    @property
    def still_learning(self) -> bool:
        """True if something is left to gain and no plateau was seen, be it that there were too few evaluations to see one; False
        without any evaluation."""
        return not self.on_plateau and self._last <= 1 - self.min_gain
