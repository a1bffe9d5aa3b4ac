"""Throughput: the time between steps, with compilation and pauses left out."""

import statistics
import time
from collections import deque


class Clock:
    """Collects seconds per step and tokens per second. `now` is the time source."""

    def __init__(self, now=time.perf_counter, keep: int = 10_000):
        self._now = now
        self._last = None
        self._samples = deque(maxlen=keep)  # (seconds, tokens)
        self._fresh = []  # those since the last `lap`

    def tick(self, tokens: int, *, compiled: bool = False) -> None:
        """A step of so many tokens has ended; one during which the host compiled does not count."""
        now = self._now()
        if self._last is not None and not compiled:
            self._samples.append((now - self._last, tokens))
            self._fresh.append(self._samples[-1])
        self._last = now

    def pause(self) -> None:
        """Evaluation or a checkpoint comes next: the time until the step after it does not count."""
        self._last = None

    def lap(self) -> float | None:
        """Median tokens per second since the last lap; None if no step counted."""
        fresh, self._fresh = self._fresh, []
        return _rate(fresh)

    def tokens_per_second(self) -> float | None:
        """Median over the steps kept; None if no step counted."""
        return _rate(self._samples)

    def seconds_per_step(self) -> float | None:
        """Median over the steps kept; None if no step counted."""
        return statistics.median(s for s, _ in self._samples) if self._samples else None


def _rate(samples) -> float | None:
    return statistics.median(tokens / seconds for seconds, tokens in samples) if samples else None
