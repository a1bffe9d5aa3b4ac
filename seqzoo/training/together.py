"""Several runs at once, for accelerators: one vectorised step (`jax.vmap`) for runs that differ only in hyperparameters.

A small model leaves most of an accelerator idle; twelve of them in one program take little longer than one. Every run keeps its own
folder, evaluations, checkpoints and end, as if it were alone; only its steps are computed with those of the others.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.filesize import decimal

from seqzoo import config
from seqzoo.model.memory import device_memory
from seqzoo.training.hyperparameters import Hyperparameters, shared_key
from seqzoo.training.loop import Done, Loop, Wanted, opened
from seqzoo.training.programs import Programs
from seqzoo.training.run.checkpoint import quiet_orbax
from seqzoo.training.run.signals import Interrupted, StopSignals
from seqzoo.training.state import State, prepare

MEMORY = 0.8  # of the device's, for a vectorised step and what its runs hold

Runs = Sequence[tuple[config.Experiment, Path]]
Outcome = dict[str, Any] | BaseException
"""A run's summary, or what ended it alone, such as Diverged."""


def fit_together(experiments: Sequence[config.Experiment]) -> bool:
    """True if the runs can be computed together: they differ only in hyperparameters, make batches of one shape on one device, and
    none is profiled."""
    first = prepare(experiments[0])
    steps = min(first.experiment.training.steps, 1000)
    return (
        len({shared_key(experiment) for experiment in experiments}) == 1
        and not first.task.on_host
        and first.mesh.size == 1
        and len({first.task.spec(step) for step in range(steps)}) == 1
        and not any(experiment.run.window or experiment.run.dump_hlo for experiment in experiments)
    )


def train_together(runs: Runs, *, console: Console | None = None, programs: Programs | None = None) -> list[Outcome]:
    """Trains runs that `fit_together`, each in its own folder; as many at once as the memory holds.

    A run gets the numbers that it gets alone, to rounding. One that ends early, diverges or fails takes its place in the step to
    the end of the others, and disturbs none.

    Args:
      runs: experiments with their folders, new or to be continued.
      console: one line for each run that ends; None is standard output.
      programs: as in `train`.
    Returns:
      For every run its summary, or its error.
    Raises:
      ValueError: the runs do not fit together. Interrupted: a signal, after all have saved.
    """
    if not fit_together([experiment for experiment, _ in runs]):
        raise ValueError("the runs do not fit together; wanted equal experiments but for learning rate, weight decay and seeds")
    console, programs = console or Console(), programs or Programs()
    outcomes: list[Outcome] = []
    most = len(runs)
    while len(outcomes) < len(runs):
        with _Group(runs[len(outcomes) : len(outcomes) + most], console, programs) as group:
            if not group.fits() and most > 1:
                most //= 2
                continue
            outcomes += group.run()
    return outcomes


class _Group:
    """Runs whose steps are computed together, from opening to closing their folders."""

    def __init__(self, runs: Runs, console: Console, programs: Programs):
        self.runs, self.console, self.programs = runs, console, programs
        self.loops: dict[int, Loop] = {}  # those that still run, by number
        self.outcomes: dict[int, Outcome] = {}
        self.closing = contextlib.ExitStack()

    def __enter__(self):
        for number, (experiment, folder) in enumerate(self.runs):
            try:
                opening = opened(experiment, folder, console=Console(quiet=True), programs=self.programs)
                found = self.closing.enter_context(opening)
            except Exception as error:  # any: it is that of one run
                self.outcomes[number] = error
                continue
            if isinstance(found, Loop):
                self.loops[number] = found
            else:
                self.outcomes[number] = found
        self.numbers = list(self.loops)  # the places in the step
        return self

    def __exit__(self, *error):
        return self.closing.__exit__(*error)

    def fits(self) -> bool:
        """True if the memory holds the vectorised step of all runs; compiles it."""
        if not self.loops:
            return True
        first = next(iter(self.loops.values()))
        with jax.set_mesh(first.setup.mesh):
            planned = first.program.together(len(self.numbers)).memory_analysis()
        found = device_memory(first.setup.mesh.devices.flat)
        if planned is None or found is None:
            return True
        needed = planned.temp_size_in_bytes + planned.output_size_in_bytes + planned.argument_size_in_bytes
        if needed <= MEMORY * found:
            return True
        self.say(f"{len(self.numbers)} runs at once need {decimal(needed)}, the device has {decimal(found)}: half as many")
        return False

    def run(self) -> list[Outcome]:
        """Trains all, and returns what became of each."""
        if self.loops:
            self._train(next(iter(self.loops.values())))
        stopped = [outcome for outcome in self.outcomes.values() if isinstance(outcome, Interrupted)]
        if stopped:
            raise stopped[0]
        return [self.outcomes[number] for number in range(len(self.runs))]

    def _train(self, first: Loop) -> None:
        setup, step = first.setup, first.program.together(len(self.numbers))
        with quiet_orbax(), jax.set_mesh(setup.mesh), StopSignals(self.say) as signals, contextlib.ExitStack() as closing:
            courses = {number: loop.course() for number, loop in self.loops.items()}
            for number, course in courses.items():
                closing.callback(course.close)
                self.loops[number].signals = signals
            for number, course in courses.items():
                self._advance(number, functools.partial(next, course))
            if not self.loops:
                return
            # In the place of a run that had nothing left to train, another one's steps are computed a second time.
            some = next(iter(self.loops.values()))
            placed = [self.loops.get(number, some) for number in self.numbers]
            states = _stack([loop.first for loop in placed])
            chosen = Hyperparameters(*map(jnp.asarray, zip(*(loop.setup.hyperparameters for loop in placed), strict=True)))
            for loop in placed:
                loop.first = {}
            part = jax.jit(lambda states, place: jax.tree.map(lambda leaf: leaf[place], states), out_shardings=setup.shardings)
            while self.loops:
                states, metrics = step(states, chosen)
                fetched = functools.cache(functools.partial(jax.device_get, metrics))
                for place, number in enumerate(self.numbers):
                    if number in self.loops:
                        one = functools.partial(_one, fetched, place)
                        done = Done(functools.partial(part, states, place), one)
                        self._advance(number, functools.partial(courses[number].send, done))

    def _advance(self, number: int, go: Callable[[], Wanted]) -> None:
        """Lets a run go on until it wants its next step; one that ends leaves the group."""
        loop = self.loops[number]
        try:
            with loop.advising():
                go()
            return
        except StopIteration as ended:
            outcome = ended.value
        except (Exception, Interrupted) as error:  # any: it is that of one run
            outcome = error
        self.outcomes[number] = outcome
        del self.loops[number]
        what = outcome if isinstance(outcome, BaseException) else f"{outcome.get('ended') or 'saved'} at step {outcome['step']}"
        self.say(f"{loop.folder}: {what}")

    def say(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@jax.jit
def _stack(trees: Sequence[State]) -> State:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one(fetched: Callable[[], dict[str, Any]], place: int) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: leaf[place], fetched())
