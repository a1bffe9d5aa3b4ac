"""The training run, from top to bottom."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.stages import Compiled
from rich.console import Console

from seqzoo import config
from seqzoo.data.atomic_io import WriteError
from seqzoo.data.errors import DataError
from seqzoo.entry import more_steps_command, resume_command
from seqzoo.printing import forgiving_console
from seqzoo.tasks.base import BatchSpec, EvalSet, Task
from seqzoo.training import init_from, input_pipeline, module_norms
from seqzoo.training.programs import Program, Programs
from seqzoo.training.progress import Reporter
from seqzoo.training.run import distributed, metric_writers, metrics, profiling, run_dir
from seqzoo.training.run.checkpoint import SAVED, Checkpoints
from seqzoo.training.run.clock import Clock
from seqzoo.training.run.lock import RunLock
from seqzoo.training.run.metrics import Metrics
from seqzoo.training.run.mfu import mfu, training_flops
from seqzoo.training.run.profiling import Profiler
from seqzoo.training.run.signals import Interrupted, StopSignals
from seqzoo.training.state import State, TrainSetup, averaged, prepare


class Diverged(FloatingPointError):
    """A run whose loss, gradient or state is not finite any more, or that skipped too many steps in a row.

    The message names the step, the metrics and the last good checkpoint.
    """


def train(
    experiment: config.Experiment,
    folder: str | Path,
    *,
    console: Console | None = None,
    mesh: config.Mesh | None = None,
    changed: bool = False,
    go_back: bool = False,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Trains an experiment in a run folder, or continues the run there; the result is bitwise that of a run that never stopped.

    Args:
      experiment: what to train. Checked against task, model and devices before anything is written.
      folder: a new folder, or one that an earlier call with the same experiment made.
      console: where to print; None is standard output, that of process 0 if there are several.
      mesh: devices to use instead of the experiment's; the numbers then agree to rounding, as sums are taken in another order.
      changed: whether a run may continue with other settings than it began with; they are recorded.
      go_back: whether a run whose latest checkpoint or metrics are gone may continue with what is there, if need be from step 0.
      programs: compiled programs of earlier runs of this process, to share and to add to; None: the run compiles its own.
    Returns:
      The contents of the folder's summary.json: "finished"; if it is true, "ended" ("solved": an evaluation above
      training.stop_above; "plateau": training.patience evaluations without a gain; "budget": all steps) and "still_learning" (it
      ended by its budget and its evaluations show no plateau, see `plateau.Gains`); "step"; "parameters" (their number);
      "state_bytes" (decode memory per row at the task's longest length); "tokens_per_second" (median, without compilation; None
      after too few steps); "final" and "best", the last evaluation and the best one by accuracy or by bits per byte: {eval set:
      {"accuracy", "loss", "chance", "settings"}}, for text also "bits_per_byte"; "test", the same of the final parameters on the
      task's test sets, evaluated once, when the run has finished ({} before, and for a task without test sets).
    Raises:
      ValueError: settings that do not fit, a folder that holds something else, that lacks what was saved in it, or whose path no
        checkpoint can have. Diverged: numbers that are not finite.
      LockedError: another process trains in the folder. CheckpointError: checkpoints exist and none loads.
      DataError: a file of the task changed while it was read. Interrupted: a signal of run/signals.py, after saving.
      WriteError: the disk is full, or the folder cannot be written; the last good checkpoint is as it was.
    """
    opening = opened(experiment, folder, console=console, mesh=mesh, changed=changed, go_back=go_back, programs=programs)
    with opening as found:
        return found.run() if isinstance(found, Loop) else found


@contextlib.contextmanager
def opened(
    experiment: config.Experiment,
    folder: str | Path,
    *,
    console: Console | None = None,
    mesh: config.Mesh | None = None,
    changed: bool = False,
    go_back: bool = False,
    programs: Programs | None = None,
) -> Iterator["Loop | dict[str, Any]"]:
    """Context in which this process alone holds a run folder: the run that continues there, or the summary of a finished one.

    Arguments and errors as in `train`.
    """
    run_dir.check_path(folder)
    console = console or Console(quiet=not distributed.is_main_process())
    setup = prepare(experiment if mesh is None else experiment.model_copy(update={"mesh": mesh}))
    _refuse_inside_data(setup.task, Path(folder))
    data = setup.task.fingerprint()
    distributed.check_agreement(_identity(setup.experiment) | {f"data {name}": str(digest) for name, digest in data.items()})
    distributed.check_mesh(setup.mesh)
    if not distributed.from_main_process(Checkpoints(Path(folder) / "checkpoints").steps):
        init_from.check(setup)
    metric_writers.check(experiment.run.log)

    if changed:  # settings that do not fit the checkpoints are refused before config.json takes them
        say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
        Checkpoints(Path(folder) / "checkpoints").restore(setup.abstract, say)

    def enter() -> tuple[dict[str, Any] | None, str]:
        metrics.read(Path(folder) / metrics.METRICS)  # read before the first write: damage is an error, and nothing has changed
        summary = metrics.read_summary(Path(folder))
        finished = metrics.finished_summary(Path(folder), experiment.training.steps)
        differing = run_dir.create_or_resume(
            folder,
            experiment,
            mesh,
            task=setup.task,
            changed=changed,
            go_back=go_back,
            finished=None if finished is None else finished["step"],
            lock=lock,
        )
        ended = f"finished at step {summary['step']}; " if summary.get("finished") else ""
        note = f"{ended}training to step {experiment.training.steps} with changed settings: {differing}"
        return finished, note if differing else ""

    lock = RunLock(Path(folder))
    with forgiving_console(console), contextlib.ExitStack() as ending:
        ending.callback(lock.release)
        finished, note = distributed.from_main_process(enter)
        if finished:
            more = f"for more steps: {more_steps_command(Path(folder))}"
            console.print(f"finished at step {finished['step']}; {more}", markup=False, highlight=False, soft_wrap=True)
            if experiment.run.window is not None:
                console.print("note: run.profile traces nothing: the run is finished", soft_wrap=True)
            yield finished
            return
        if note:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        if lock.note:
            console.print(f"note: {lock.note}", markup=False, highlight=False, soft_wrap=True)
        yield Loop(setup, Path(folder), console, (programs or Programs()).of(setup))


def check(experiment: config.Experiment, *, resumed: bool = False) -> None:
    """Raises ValueError if the experiment does not fit its task, its model, the devices or installed packages. Writes nothing.

    With several processes all must call it, and it also raises if they differ in settings or versions.

    resumed: the run already has parameters, so `model.init_from` is not read.
    """
    metric_writers.check(experiment.run.log)
    if not resumed:
        run_dir.check_path(Path(experiment.run.folder) / experiment.name)
    setup = prepare(experiment)
    _refuse_inside_data(setup.task, Path(experiment.run.folder))
    distributed.check_agreement(_identity(experiment))
    if not resumed:
        init_from.check(setup)


def _refuse_inside_data(task: Task, folder: Path) -> None:
    if task.reads(folder):
        raise ValueError(f"{folder} is inside the data of {task}, which a run there would change; wanted run.folder outside of it")


def _identity(experiment: config.Experiment) -> dict[str, str]:
    """All that processes of one run must have in common before they read data: settings and versions."""
    return {name: repr(value) for name, value in config.settings(experiment).items()} | run_dir.versions()


class _Pending(NamedTuple):
    """Metrics of a dispatched step, not read from the devices yet."""

    step: int
    metrics: Callable[[], dict[str, Any]]
    spec: BatchSpec


Wanted = tuple[BatchSpec, input_pipeline.Batch | None]
"""A step that a run asks for: spec and batch; no batch if the step makes its own."""


class Done(NamedTuple):
    """A step that was computed."""

    state: Callable[[], State]  # the state after it, valid until the next step
    metrics: Callable[[], dict[str, Any]]  # its metrics, valid for ever


class Loop:
    """A running run: all that reads, saves and reports its state. `run` computes its steps; training.together those of many."""

    def __init__(self, setup: TrainSetup, folder: Path, console: Console, program: Program):
        self.setup = setup
        self.settings = setup.experiment.training
        self.folder = folder
        about = {"config": setup.experiment.model_dump(mode="json"), "git": run_dir.git_revision()}
        self.checkpoints = Checkpoints(folder / "checkpoints", self.settings.keep, about, folder / SAVED)
        self.console = console
        self.program = program
        chosen = setup.hyperparameters
        self.chosen = program.replicate(chosen)
        self.evaluate = functools.partial(program.evaluate, seed=chosen.eval_seed)
        self.flops = training_flops(setup.model(setup.abstract["params"]).flops)
        self.profiler = Profiler(setup.experiment.run.window, folder)
        self.pending: _Pending | None = None

    def run(self) -> dict[str, Any]:
        """Trains until the end, training.stop_after_steps, a signal, a number that is not finite, or a failed write."""
        with (
            self.advising(),
            distributed.ending_with_partner(self.advice),
            jax.set_mesh(self.setup.mesh),
            StopSignals(self.print) as self.signals,
            contextlib.closing(self.course()) as course,
        ):
            try:
                spec, batch = next(course)
                state = self.take()
                while True:
                    step = self.program.compiled.get(spec) or self.compile(state, spec, batch)
                    state, metrics = step(state, batch, self.chosen)
                    spec, batch = course.send(Done(lambda state=state: state, lambda metrics=metrics: metrics))
            except StopIteration as ended:
                return ended.value

    @contextlib.contextmanager
    def advising(self) -> Iterator[None]:
        """Context in which an error of files also tells where the run stands, and how it continues."""
        try:
            yield
        except (WriteError, DataError) as error:
            again = f"after fixing this, continue with: {resume_command(self.folder)}"
            kind = WriteError if isinstance(error, WriteError) else DataError
            raise kind(f"{error}; {self.last_good()}; {again}") from error

    def advice(self) -> str:
        """The way to continue when another process has ended."""
        return f"continue with, in all processes: {resume_command(self.folder)}"

    def course(self) -> Generator[Wanted, Done, dict[str, Any]]:
        """The run from its start to its summary: yields each step that it wants, and is sent the computed one.

        Where it first yields, `take` has the state to begin with.
        """
        with self.checkpoints:
            self.begin()
            end = min(self.settings.steps, self.step + (self.settings.stop_after_steps or self.settings.steps))
            if (note := self.profiler.note(self.step, end)) is not None:
                self.print(f"note: {note}")
            with (
                contextlib.closing(self.metrics),
                contextlib.closing(self.profiler),
                Reporter(self.console, self.step, self.settings.steps) as self.reporter,
            ):
                return (yield from self.train(end))

    def take(self) -> State:
        """The state to begin with, once: the first step takes its memory."""
        state, self.first = self.first, {}
        return state

    def begin(self) -> None:
        """Makes the first state, of the latest checkpoint or a new one; opens metrics and clock at its step."""
        for note in self.setup.task.notes():
            self.print(f"note: {note}")
        if self.setup.mesh.size < jax.device_count():
            self.print(f"note: the mesh uses {self.setup.mesh.size} of {jax.device_count()} devices")
        state = self.checkpoints.resume(self.setup.abstract, self.print)
        loaded = state is None and self.setup.experiment.model.init_from is not None
        if state is not None:
            self.print(f"resuming {self.folder} at step {int(state['step'])}")
        else:
            state = self.load_initial() if loaded else self.initialise({})
        self.first = state
        self.step = int(state["step"])
        self.metrics = Metrics(self.setup, self.folder, self.step)
        if self.metrics.doubled:
            self.print(f"note: {self.folder / metrics.METRICS} had {self.metrics.doubled} doubled lines; each counts once")
        self.clock = Clock(earlier=self.metrics.seconds)
        self.tokens = sum(spec.batch * spec.length for spec in map(self.setup.train_task.spec, range(self.step)))
        self.checkpoints.best = self.metrics.best() if self.settings.keep_best else None
        self.saved_at = time.monotonic()
        if loaded:
            self.save(lambda: state)  # so that a resumed run never reads the other model again

    def initialise(self, loaded: dict[str, Any]) -> State:
        """The state before the first step; `loaded` is a part of the parameters."""
        with jax.set_mesh(self.setup.mesh):
            return self.program.initialise(self.chosen.seed, loaded)

    def load_initial(self) -> State:
        """The state before the first step with the parameters of `model.init_from`; the report is printed and recorded."""
        loaded, report = init_from.load(self.setup, self.print)
        state = self.initialise(loaded)
        if not self.program.finite(state):
            raise init_from.InitFromError(f"model.init_from={report.path!r}: parameters are not all finite; wanted another model")
        for line in report.lines():
            self.print(line)
        if distributed.is_main_process():
            run_dir.record(self.folder, init_from=report._asdict())
        return state

    def train(self, end: int) -> Generator[Wanted, Done, dict[str, Any]]:
        """Trains from the first state to step `end` or to an earlier stop, and returns the run's summary; see `course`."""
        self.stopping = self.signals.stopping
        state = lambda: self.first
        self.maybe_evaluate(state)  # a run that was stopped between a checkpoint and its evaluation still needs the evaluation
        for spec, batch in self.clock.waiting(input_pipeline.train_batches(self.setup, self.step, end)):
            if self.stopping() or self.metrics.ended(self.step):
                break
            self.profiler.at(self.step, state)
            state, metrics = yield spec, batch
            self.step += 1
            # Step N is dispatched; the numbers of step N - 1 are read meanwhile, so the devices never wait for the host.
            self.read_pending()
            self.pending = _Pending(self.step, metrics, spec)
            if any(map(self.is_due, (self.settings.log_every, self.settings.checkpoint_every, self.settings.eval_every))):
                self.read_pending()
            if self.is_due(self.settings.checkpoint_every) or self.checkpoint_overdue():
                self.save(state)
            self.maybe_evaluate(state)
        self.read_pending()
        self.save(state)
        self.checkpoints.wait()  # the checkpoint must be on disk before the summary and the message report it
        test = self.test(state) if self.metrics.ended(self.step) else None
        summary = self.summarise(test)
        if summary["finished"]:
            self.report_ending(summary)
        else:
            self.print(f"saved {self.folder} at step {self.step}; continue with: {resume_command(self.folder)}")
            if self.signals.caught is not None:
                raise Interrupted(self.signals.caught, self.step)
        return summary

    def print(self, text: str) -> None:
        """Prints a line above the progress bar, without interpreting markup: specs may contain brackets."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def is_due(self, every: int) -> bool:
        """Tells if an action of every `every` steps, and of the last step, is due after the current step."""
        return self.step > 0 and (self.step % every == 0 or self.step == self.settings.steps)

    def compile(self, state: State, spec: BatchSpec, batch: input_pipeline.Batch | None) -> Compiled:
        """Compiles the step for batches of a spec; before the first one runs, the memory that it needs is printed."""
        with self.clock.phase("compile"), self.signals.waiting_for("the compilation and one step"):
            lowered = self.program.step.lower(state, spec, batch, self.chosen)
            self.program.compiled[spec] = compiled = lowered.compile()
        if len(self.program.compiled) == 1:
            self.print(f"memory of a step: {profiling.memory(compiled) or 'not reported by this backend'}")
            if self.setup.experiment.run.dump_hlo and distributed.is_main_process():
                profiling.dump_hlo(lowered, compiled, self.folder)
        return compiled

    def read_pending(self) -> None:
        """Reads, checks and records the metrics of the previous step, if they were not read yet."""
        if self.pending is None:
            return
        (step, metrics, spec), self.pending = self.pending, None
        metrics = jax.device_get(metrics())
        norms = metrics.pop("module_norms", {})
        metrics = {name: float(value) for name, value in metrics.items()}
        if not self.is_acceptable(metrics):
            self.diverged(step, metrics)
        self.clock.tick(spec.batch * spec.length, flops=self.flops(spec))
        self.tokens += spec.batch * spec.length
        self.last = metrics
        logged = step % self.settings.log_every == 0 or step == self.settings.steps
        if not logged and not self.reporter.stale():
            return  # medians cost more than a small step
        seconds = self.clock.seconds_per_step()
        left = None if seconds is None else seconds * (self.settings.steps - step)
        self.reporter.step(step, metrics, self.clock.tokens_per_second(), left)
        if logged:
            rates = self.clock.lap()
            more: dict[str, Any] = {"tokens_per_second": rates.tokens_per_second, "mfu": self.mfu(rates.flops_per_second)}
            more |= {name: module_norms.by_layer(tree) for name, tree in norms.items()}
            self.metrics.train(step, **metrics, **more, **self.progress())
            self.reporter.line(step, metrics, rates.tokens_per_second, left)

    def progress(self) -> dict[str, float]:
        """Training tokens and seconds so far, for the x axis of curves."""
        return {"tokens": self.tokens, "seconds": self.clock.total()}

    def mfu(self, flops_per_second: float | None) -> float | None:
        """Model FLOPs utilisation (MFU) at that rate; None if the devices' peak is not known."""
        model, mesh = self.setup.experiment.model, self.setup.mesh
        return mfu(flops_per_second, mesh.size, mesh.devices.flat[0].device_kind, model.dtype or model.param_dtype)

    def is_acceptable(self, metrics: dict[str, float]) -> bool:
        """Tells if the run may continue after a step with these metrics: finite, or not too many skipped steps in a row."""
        limit = self.setup.experiment.optimizer.skip_limit
        return all(map(math.isfinite, metrics.values())) if limit is None else metrics["skipped_in_a_row"] < limit

    def save(self, state: Callable[[], State]) -> None:
        """Writes a checkpoint of this step if there is none. A state that is not finite is never saved: it raises Diverged."""
        if self.checkpoints.latest == self.step:
            return
        with self.clock.phase("save"):
            now = state()
            if not self.program.finite(now):
                self.diverged(self.step, self.last)
            # Synced first: a checkpoint never survives a power cut without the metrics of the steps before it.
            self.checkpoints.save(now, metrics=self.metrics.sync())
        self.saved_at = time.monotonic()

    def checkpoint_overdue(self) -> bool:
        """Tells if the last checkpoint is older than training.checkpoint_minutes; checked at steps that log a line."""
        minutes = self.settings.checkpoint_minutes
        if minutes is None or not self.is_due(self.settings.log_every):
            return False
        return distributed.from_main_process(lambda: time.monotonic() - self.saved_at > 60 * minutes)

    def maybe_evaluate(self, state: Callable[[], State]) -> None:
        """Evaluates all evaluation sets if that is due and was not done yet."""
        if not self.is_due(self.settings.eval_every) or self.metrics.evaluated >= self.step:
            return
        results = self.evaluated(state, self.setup.task.eval_sets())
        if results is None:
            return
        self.metrics.evaluation(self.step, results, **self.progress())
        if results:
            self.reporter.evaluation(self.step, results)
        if self.settings.keep_best and self.metrics.best() == self.step:
            self.save(state)
            self.checkpoints.best = self.step

    def test(self, state: Callable[[], State]) -> dict[str, dict[str, Any]] | None:
        """The numbers of the test sets, which decide nothing; None if a signal came meanwhile: a resumed run evaluates them."""
        results = self.evaluated(state, self.setup.task.test_sets())
        if results:
            self.reporter.evaluation(self.step, results, "test ")
        return results

    def evaluated(self, state: Callable[[], State], eval_sets: tuple[EvalSet, ...]) -> dict[str, dict[str, Any]] | None:
        """{eval set: its numbers}, or None if a signal came meanwhile. Raises Diverged if a loss is not finite."""
        with self.clock.phase("eval"):
            results = self.evaluate(averaged(state()), eval_sets, self.stopping)
        losses = {f"{name} loss": result["loss"] for name, result in (results or {}).items()}
        if not all(map(math.isfinite, losses.values())):
            self.diverged(self.step, losses)
        return results

    def report_ending(self, summary: dict[str, Any]) -> None:
        """Prints why a run ended, unless it just came to its end with nothing more to gain."""
        more = f"for more steps: {more_steps_command(self.folder)}"
        endings = {
            "solved": f"solved: accuracy above training.stop_above={self.settings.stop_above}",
            "plateau": f"plateau: no gain in training.patience={self.settings.patience} evaluations",
            "budget": f"still learning; {more}" if summary["still_learning"] else None,
        }
        if (ending := endings[summary["ended"]]) is not None:
            self.print(f"step {self.step}/{self.settings.steps}  {ending}")

    def diverged(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the summary and raises Diverged."""
        self.checkpoints.wait()
        shown = ", ".join(f"{name}={value:.6g}" for name, value in metrics.items())
        skips = metrics.get("skipped_in_a_row")
        what = f"{skips:.0f} steps in a row were skipped (optimizer.skip_limit)" if skips else "no longer finite"
        message = f"step {step}: {what} ({shown}); {self.last_good()}. A smaller optimizer.learning_rate or clip_norm may help."
        self.summarise(None, stopped=message)
        raise Diverged(message)

    def last_good(self) -> str:
        """The checkpoint from which a run that stops now would continue, in words."""
        step = self.checkpoints.complete
        return (
            "there is no checkpoint yet" if step is None else f"the last good checkpoint is {self.checkpoints.folder / str(step)}"
        )

    def summarise(self, test: dict[str, dict[str, Any]] | None, **more: str) -> dict[str, Any]:
        """Writes and returns summary.json; a run is finished when its test sets are evaluated."""
        rate, mfu = self.clock.tokens_per_second(), self.mfu(self.clock.flops_per_second())
        return self.metrics.summarise(test, self.step, rate, mfu=mfu, seconds=self.clock.phases(), **more)
