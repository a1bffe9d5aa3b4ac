"""The runs of a comparison: one experiment after another, each in its own folder; a finished one is not repeated.

Any number of processes can do this at the same time in one folder (store.py): each takes the next run that is neither finished nor
claimed, and waits for the others at the end, to take over the run of one that is killed.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console

from seqzoo import config
from seqzoo.compare.claims import CRASHES, Claim
from seqzoo.compare.overall import Overall
from seqzoo.compare.report import REPORT
from seqzoo.compare.results import write_figures, write_results
from seqzoo.compare.shares import Shard, in_order
from seqzoo.compare.store import FAILURE, Store, open_store
from seqzoo.compare.summary import Run, summarise
from seqzoo.compare.tables import caption, print_line, print_table, table
from seqzoo.entry import resume_command

if TYPE_CHECKING:
    from seqzoo.training.programs import Programs
    from seqzoo.training.together import Outcome

MOST_TOGETHER = 64  # runs in one vectorised step on an accelerator, if its memory holds so many
POLL = 1.0  # seconds between two looks at the runs of other processes

Train = Callable[..., dict[str, Any]]


def run(
    comparison: config.Comparison,
    folder: str | Path,
    *,
    console: Console | None = None,
    run: Train | None = None,
    retry: bool = False,
    jobs: int = 1,
    shard: Shard | None = None,
    continue_unfinished: bool = False,
    steps: int | None = None,
    together: int | None = None,
) -> dict[str, Any]:
    """Trains every experiment of a comparison that has no result yet, and writes results, report and figures.

    The folder receives config.json, one folder per experiment under runs/, and after each experiment results.json, results.csv and
    report.md, at the end also learning_curves.png and, with several evaluation sets, eval_sets.png. A second call continues an
    interrupted comparison; one that is made meanwhile takes part in it. An experiment that diverges or fails in any other way is
    recorded with its reason, and the other experiments run; only a signal and a failed write end the comparison.

    Args:
      comparison: base and axes.
      folder: a new folder, or one that an earlier call with the same comparison left.
      console: where to print; None is standard output.
      run: function that trains one experiment; None: `seqzoo.training.train(experiment, folder, console=console)`, with programs
        that runs share which differ only in learning rate, weight decay or seeds.
      retry: whether experiments that failed before are tried again, each from its latest checkpoint.
      jobs: number of processes that train; with several, each has its share of the cores, and `run` must be None.
      continue_unfinished: whether the runs that are still learning at the end of their budget get a longer one; it stays.
      steps: that budget, in training steps in all; None: twice the steps that each of these runs has done.
      shard: the part of the runs that this call trains; None: all. Parts need no locks, so they may be on several machines.
      together: number of runs that a process trains at once, by one vectorised step (training/together.py); None: on a CPU one, on
        an accelerator as many as its memory holds. Runs that differ in more than learning rate, weight decay and seeds, or read
        files, are trained alone. `run` trains one.
    Returns:
      The content of results.json.
    Raises:
      ValueError: the folder holds something else, or was written by another version; nothing is written. Interrupted: a signal,
        after saving. WriteError: a file cannot be written.
    """
    console = console or Console()
    store = open_store(Path(folder), comparison)
    if shard is not None:
        store.take_shard(shard)
        print_line(console, f"shard {shard}: {sum(map(store.is_mine, store.runs()))} of {len(store.runs())} runs")
    if retry:
        store.retry()
    if continue_unfinished:
        longer = store.continue_unfinished(steps)
        for name, done, wanted in longer:
            print_line(console, f"still learning, continued from step {done} to {wanted}: {name}")
        if not longer:
            print_line(console, "no finished run is still learning")
    if jobs == 1:
        train_all(store, console, run, together=together)
    else:
        from seqzoo.compare.jobs import train_in_processes

        train_in_processes(store, console, jobs, together)
    return _finish(store, console)


def train_all(
    store: Store, console: Console, train: Train | None = None, overall: Console | None = None, together: int | None = None
) -> None:
    """Trains the runs without a result, one after another, until none is left that this process or another has to train.

    The overall line goes to `overall`, or to the console as well. `train` and `together` as in `run`.
    """
    from seqzoo import training
    from seqzoo.training.programs import Programs

    programs = Programs()
    train_one: Train = train or functools.partial(training.train, programs=programs)
    most = 1 if train else together or (1 if jax.default_backend() == "cpu" else MOST_TOGETHER)
    held: list[Claim] = []
    last, waiting = None, False
    for each in filter(store.is_mine, store.runs()):
        if each.problem and not (store.place(each) / FAILURE).exists():  # a damaged result, or a process that was killed just then
            store.record_failure(each, each.problem)
    try:
        with Overall(overall or console, store.keys) as line:
            while True:
                runs = list(filter(store.is_mine, store.runs()))
                left = [each for each in runs if not each.settled]
                busy = store.busy(left)
                taken = _take(store, in_order(left, store.keys, busy, last), console, most)
                while held:  # only now: meanwhile no other process began a run with the same programs
                    held.pop().release()
                if not taken:
                    if not left:
                        break
                    if not waiting:
                        print_line(console, f"waiting for runs of other processes: {', '.join(each.name for each in left)}")
                    waiting = True
                    line.update(runs, busy)
                    sleep(POLL)
                    continue
                chosen, held = [run for run, _ in taken], [claim for _, claim in taken]
                waiting = False
                line.update(runs, busy.union(run.name for run in chosen))
                for each in chosen:
                    print_line(console, f"[{runs.index(each) + 1}/{len(runs)}] {each.name}")
                for each, outcome in _trained(store, chosen, console, train_one, programs):
                    _record(store, each, outcome, console)
                last = store.keys[chosen[0].name]
                publish(store)
    finally:
        for claim in held:
            claim.release()


def _trained(
    store: Store, runs: list[Run], console: Console, train: Train, programs: "Programs"
) -> Iterable[tuple[Run, "Outcome"]]:
    """Trains the runs, by one vectorised step if they are several. Gives what became of each: a summary or an error."""
    if len(runs) > 1:
        from seqzoo.training.together import train_together

        pairs = [(store.experiments[run.name], store.place(run)) for run in runs]
        return zip(runs, train_together(pairs, console=console, programs=programs), strict=True)
    (run,) = runs
    changed: dict[str, Any] = {"changed": True} if run.more_steps else {}
    try:
        return [(run, train(store.experiments[run.name], store.place(run), console=console, **changed))]
    except Exception as error:  # any: an experiment may run code of the user
        return [(run, error)]


def _record(store: Store, run: Run, outcome: "Outcome", console: Console) -> None:
    """Records why a run has no result, if it has none. Raises WriteError: it would hit the other runs too."""
    from seqzoo import training
    from seqzoo.training.run.lock import LockedError

    if isinstance(outcome, training.WriteError):
        raise outcome
    if isinstance(outcome, LockedError):  # trained by itself, as with `resume RUN`
        print_line(console, f"note: {outcome}")
        sleep(POLL)
    elif isinstance(outcome, Exception):
        print_line(console, f"{run.name} failed: {store.record_failure(run, outcome)}")
    elif not store.read(run).settled:
        store.record_failure(run, "it ended without a result")


def _take(store: Store, runs: list[Run], console: Console, most: int) -> list[tuple[Run, Claim]]:
    """The first of the runs that this process can claim, and up to `most` in all that can be trained together with it."""
    taken: list[tuple[Run, Claim]] = []
    for run in runs:
        if taken and (run.more_steps or store.keys[run.name] != store.keys[taken[0][0].name]):
            continue
        claim = store.claim(run)
        if claim is None:
            continue
        if store.read(run).settled:  # another process has just finished it
            claim.release()
        elif claim.crashes >= CRASHES:
            problem = (
                f"{CRASHES} processes in a row were killed while they trained it, the last was {claim.before} (too little memory?)"
            )
            print_line(console, f"{run.name} failed: {store.record_failure(run, problem)}")
            claim.release()
        else:
            if claim.before:
                print_line(console, f"taking over {run.name}: {claim.before} was killed while it trained it")
            taken.append((run, claim))
            if len(taken) == most or (len(taken) == 1 and not _vectorises(store, run)):
                break
    return taken


def _vectorises(store: Store, run: Run) -> bool:
    """Tells if a run can be trained together with others."""
    from seqzoo.training.together import fit_together

    try:
        return not run.more_steps and fit_together([store.experiments[run.name]])
    except ValueError:  # the run fails with it, by itself
        return False


def publish(store: Store) -> tuple[list[Run], dict[str, Any]]:
    """Writes results and report from the runs as they are. Returns the runs and the content of results.json.

    Repeated until no run has ended meanwhile, so that the last process to write has seen all, also without locks.
    """
    with store.lock():
        while True:
            runs = store.runs()
            results = write_results(store.folder, store.comparison, runs, store.experiments)
            if store.runs() == runs:
                return runs, results


def _finish(store: Store, console: Console) -> dict[str, Any]:
    """Writes everything, and prints the table."""
    runs, results = publish(store)
    with store.lock():
        write_figures(store.folder, runs)
    print_table(console, table(summarise(runs), runs, store.comparison.name))
    print_line(console, caption(runs))
    for each in runs:
        if each.problem:
            print_line(console, f"{each.name} has no result: {each.problem}")
    if open := sum(not each.settled for each in runs):
        print_line(console, f"runs of other shards without a result yet: {open}")
    if any(each.problem for each in runs):
        print_line(console, f"to try them again: {resume_command(store.folder)} --retry")
    print_line(console, f"report: {store.folder / REPORT}")
    return results
