"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from seqzoo.training.objective import objective_of

REFRESH = 0.2  # seconds between two moves of the bar


class Reporter:
    """Context that shows the progress of a run: on a terminal a bar; elsewhere lines, by `line`."""

    def __init__(self, console: Console, step: int, steps: int):
        self.console = console
        self.steps = steps
        self._progress, self._moved = None, 0.0
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("", total=steps, completed=step, text="compiling")

    def __enter__(self):
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._progress:
            self._progress.stop()

    def print(self, text: str) -> None:
        """Prints a line above the bar. It is never interpreted as markup: specs may contain brackets."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stale(self) -> bool:
        """Tells if there is a bar that has not moved for REFRESH seconds."""
        return self._progress is not None and time.monotonic() - self._moved > REFRESH

    def step(self, step: int, metrics: dict[str, float], rate: float | None, left: float | None) -> None:
        """Moves the bar."""
        if self._progress:
            self._moved = time.monotonic()
            self._progress.update(self._task, completed=step, text=_text(metrics, rate, left))

    def line(self, step: int, metrics: dict[str, float], rate: float | None, left: float | None) -> None:
        """Prints a training line if there is no bar."""
        if not self._progress:
            self.print(f"step {step}/{self.steps}  {_text(metrics, rate, left)}")

    def evaluation(self, step: int, results: dict[str, dict[str, Any]], kind: str = "") -> None:
        """Prints the accuracies of an evaluation, for text the bits per byte, in one line; `kind` comes before that word."""
        objective = objective_of([results])
        shown = "  ".join(f"{name} {each[objective.name]:.3f}" for name, each in results.items())
        self.print(f"step {step}/{self.steps}  {kind}{objective.title} {shown}")


def _text(metrics: dict[str, float], rate: float | None, left: float | None) -> str:
    parts = [f"loss {metrics['loss']:.4f}", f"accuracy {metrics['accuracy']:.3f}"]
    if rate is not None:
        parts.append(f"{rate:,.0f} tokens/s")
    if left is not None:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return "  ".join(parts)
