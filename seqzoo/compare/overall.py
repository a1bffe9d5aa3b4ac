"""The overall line of a comparison while it runs: runs done, running and failed, and the time left."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from seqzoo.compare.summary import Run
from seqzoo.compare.tables import clock, print_line

REFRESH = 5  # times a second, on a terminal


class Overall:
    """Context that shows the overall line: on a terminal above all other progress, elsewhere as a line after each run.

    Args:
      console: where to print.
      keys: the programs of each run, by name: runs with the same take about the same time.
      below: more lines for a terminal, made at every refresh.
    """

    def __init__(self, console: Console, keys: Mapping[str, str], below: Callable[[], Sequence[str]] = tuple):
        self.console, self.keys, self.below = console, keys, below
        self._done, self._counts, self._end = "", "", None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=REFRESH, transient=True)

    def __enter__(self):
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_):
        self._live.stop()

    def update(self, runs: Sequence[Run], running: Collection[str]) -> None:
        """Takes the runs as they are now, and the names of those that some process trains."""
        left = time_left(runs, running, self.keys)
        self._end = None if left is None else time.monotonic() + left
        before, self._done = self._done, counts(runs, 0)
        self._counts = counts(runs, len(running))
        if before != self._done and not self.console.is_terminal:
            print_line(self.console, self.line())

    def line(self) -> str:
        """The line, at most 60 characters wide for fewer than 1,000 runs."""
        if self._end is None:
            return self._counts
        return f"{self._counts}, about {clock(max(0.0, self._end - time.monotonic()))} left"

    def _render(self) -> RenderableType:
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in (self.line(), *self.below())))


def counts(runs: Sequence[Run], running: int) -> str:
    """The number of runs done, failed and running, in words."""
    failed = sum(run.problem is not None for run in runs)
    text = f"{sum(run.settled for run in runs) - failed} of {len(runs)} runs done"
    return text + (f", {failed} failed" if failed else "") + (f", {running} running" if running else "")


def time_left(runs: Sequence[Run], running: Collection[str], keys: Mapping[str, str]) -> float | None:
    """Seconds until all runs are done with as many processes as now; None before the first result and at the end.

    A run takes as long as finished ones with the same programs took, or as all finished ones; a running one half as long.
    """
    took: dict[str, list[float]] = {}
    for run in runs:
        if run.finished and isinstance(phases := run.summary.get("seconds"), dict):
            took.setdefault(keys[run.name], []).append(sum(phases.values()))
    left = [run.name for run in runs if not run.settled]
    if not took or not left:
        return None
    usual = fmean(fmean(seconds) for seconds in took.values())
    expected = {key: fmean(seconds) for key, seconds in took.items()}
    total = sum(expected.get(keys[name], usual) * (0.5 if name in running else 1.0) for name in left)
    return total / max(1, min(len(running), len(left)))
