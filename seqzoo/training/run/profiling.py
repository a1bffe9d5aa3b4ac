"""Profiling: traces of a window of steps, compiled programs as text, their memory, and the compilation cache.

A step that is compiled ahead of time can be inspected before it runs, and is compiled only once:

    lowered = step.lower(state, spec, batch)
    compiled = lowered.compile()
    state, metrics = compiled(state, batch)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.stages import Compiled, Lowered
from rich.filesize import decimal

from seqzoo.data.atomic_io import write_errors, write_text


class Profiler:
    """Traces the steps of a window into RUN/profile, for XProf, TensorBoard's profile plugin or Perfetto.

    Costs nothing outside the window. At its borders the host waits for the devices, so that the trace contains exactly these steps.
    A run that is resumed inside the window traces the rest of it.

    Args:
      window: (first, last), to trace from when `first` steps are done until `last` are; None: no trace.
      folder: of the run.
    """

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        self._first, self._last = (0, 0) if window is None else window
        self.folder = Path(folder) / "profile"
        self._tracing = False

    def note(self, step: int, end: int) -> str | None:
        """A line for a run from `step` to `end` that traces only some steps of the window, or none; None if it traces all."""
        first, last = max(self._first, step), min(self._last, end)
        if not self._last or (first, last) == (self._first, self._last):
            return None
        found = f"steps {first}:{last} only" if first < last else "nothing"
        return f"run.profile={self._first}:{self._last} traces {found}: this call trains from step {step} to {end}"

    def at(self, step: int, state: Callable[[], Any]) -> None:
        """Starts or ends the trace. Call it between steps, when `step` of them are dispatched and `state()` is their result."""
        inside = self._first <= step < self._last
        if inside == self._tracing:
            return
        jax.block_until_ready(state())
        if inside:
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        else:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one has been started. Raises WriteError."""
        if self._tracing:
            self._tracing = False
            with write_errors(self.folder):
                jax.profiler.stop_trace()


def dump_hlo(lowered: Lowered, compiled: Compiled, folder: Path, name: str = "train_step") -> None:
    """Writes RUN/hlo/NAME.stablehlo.txt, the program from JAX, and NAME.hlo.txt, XLA's optimised one. Raises WriteError."""
    folder = Path(folder) / "hlo"
    with write_errors(folder):
        folder.mkdir(exist_ok=True)
    write_text(folder / f"{name}.stablehlo.txt", lowered.as_text())
    write_text(folder / f"{name}.hlo.txt", compiled.as_text() or "")


class Memory(NamedTuple):
    """Bytes that a compiled function needs on each device, by XLA's plan for one of them."""

    total: int  # arguments + outputs + temporaries - aliased
    arguments: int
    outputs: int
    temporaries: int
    aliased: int  # outputs that take the place of donated arguments

    def __str__(self):
        return (
            f"{decimal(self.total)} on each device: {decimal(self.arguments)} arguments, {decimal(self.outputs)} outputs "
            f"({decimal(self.aliased)} of them in place of arguments), {decimal(self.temporaries)} temporaries"
        )


def memory(compiled: Compiled) -> Memory | None:
    """Memory of a compiled function; None if its backend does not report it."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    sizes = (plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes, plan.alias_size_in_bytes)
    return Memory(sum(sizes[:3]) - sizes[3], *sizes)


def enable_compilation_cache(path: str | Path) -> None:
    """Stores compiled programs of this process in a folder from now on, and reuses those that are there.

    JAX stores programs that took at least a second to compile (`jax_persistent_cache_min_compile_time_secs`). The programs are
    executed: anyone who can write to the folder can run code in this process. So it is no setting of a run, whose config.json may
    come from a stranger.
    Raises:
      WriteError: the folder cannot be made.
    """
    folder = Path(path).expanduser().absolute()
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # JAX decides at a process's first compilation whether it has a cache
