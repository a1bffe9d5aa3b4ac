"""Wall time of a run by phase, and throughput of its steps.

After big_vision's Chrono (Beyer et al., 2022): all time belongs to a phase, so that no time is missing from the report.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")

TRAIN = "train"  # the phase of all time that belongs to no other
WAIT = "wait"  # waiting for data: part of a step's time, so it lowers the throughput; all other phases interrupt the steps


class Rates(NamedTuple):
    """Medians over steps; None if no step counted."""

    seconds_per_step: float | None
    tokens_per_second: float | None
    flops_per_second: float | None


class Clock:
    """Divides wall time into phases, and collects the time between steps without compilation and other interruptions.

    At any time one phase is active; `phases()` add up to `total()`. A resumed run counts on from `earlier`, the total in its
    metrics, which does not contain the time of steps that a killed process did not save.

        with clock.phase("eval"):
            ...

    Args:
      now: the time source, in seconds.
      keep: largest number of steps over which medians are taken.
      earlier: seconds that the run took in earlier processes.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter, keep: int = 10_000, earlier: float = 0.0):
        self.earlier = earlier
        self._now = now
        self._phase, self._since = TRAIN, now()
        self._phases = {TRAIN: 0.0}
        self._last = None
        self._samples = deque(maxlen=keep)  # (seconds, tokens, FLOPs)
        self._fresh: list[tuple[float, int, float]] = []  # those since the last lap

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context whose time belongs to `name`; the time of a phase inside it is that phase's."""
        before = self._switch(name)
        if name != WAIT:
            self.pause()
        try:
            yield
        finally:
            self._switch(before)

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the same items; the time until each is available belongs to the phase "wait"."""
        iterator = iter(items)
        while True:
            with self.phase(WAIT):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def phases(self) -> dict[str, float]:
        """Seconds of each phase so far, "train" first; "earlier" if there were earlier processes."""
        self._switch(self._phase)
        return self._phases | ({"earlier": self.earlier} if self.earlier else {})

    def total(self) -> float:
        """Seconds that the run has taken, earlier processes included."""
        return sum(self.phases().values())

    def tick(self, tokens: int, *, flops: float = 0.0) -> None:
        """Records the end of a step of so many tokens and model FLOPs."""
        now = self._now()
        if self._last is not None:
            self._samples.append((now - self._last, tokens, flops))
            self._fresh.append(self._samples[-1])
        self._last = now

    def pause(self) -> None:
        """Records an interruption: the time until the end of the next step does not count."""
        self._last = None

    def lap(self) -> Rates:
        """Medians over the steps since the last lap."""
        fresh, self._fresh = self._fresh, []
        return Rates(*map(_median, (_seconds(fresh), _tokens(fresh), _flops(fresh))))

    def seconds_per_step(self) -> float | None:
        """Median over the steps kept; None if no step counted."""
        return _median(_seconds(self._samples))

    def tokens_per_second(self) -> float | None:
        """Median over the steps kept; None if no step counted."""
        return _median(_tokens(self._samples))

    def flops_per_second(self) -> float | None:
        """Median over the steps kept; None if no step counted."""
        return _median(_flops(self._samples))

    def _switch(self, name: str) -> str:
        """Ends the active phase, adding the time since the last switch to it, and begins another. Returns the former."""
        now = self._now()
        before = self._phase
        self._phases[before] = self._phases.get(before, 0.0) + now - self._since
        self._phase, self._since = name, now
        return before


def _seconds(samples) -> list[float]:
    return [seconds for seconds, _, _ in samples]


def _tokens(samples) -> list[float]:
    return [tokens / seconds for seconds, tokens, _ in samples]


def _flops(samples) -> list[float]:
    return [flops / seconds for seconds, _, flops in samples]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
