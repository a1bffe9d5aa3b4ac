"""Several worker processes for one comparison on one machine: `--jobs N`.

The parent trains nothing. It starts the workers, each with its share of the cores, prints their lines and the overall line, passes
signals on, and reports a worker that is killed. Workers find their runs by themselves (runner.py).
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import jax
from rich.console import Console

from seqzoo.compare import claims
from seqzoo.compare.overall import Overall
from seqzoo.compare.store import Store
from seqzoo.compare.tables import print_line
from seqzoo.data.atomic_io import WriteError
from seqzoo.entry import resume_command
from seqzoo.training.run.signals import ORDERS, WARNINGS, Interrupted

LOOK = 1.0  # seconds between two looks at the runs
STEP = re.compile(r"step \d+/\d+ ")  # the beginning of a line that a later one replaces, on a terminal
# XLA asks for the cores of the process when it starts, so they are chosen before anything is imported.
START = """
import os, sys
cores = [int(core) for core in sys.argv.pop(1).split(",") if core]
if cores: os.sched_setaffinity(0, cores)
from seqzoo.compare.worker import main
sys.exit(main())
"""


class Worker:
    """A worker process, and what it printed last."""

    def __init__(self, number: int, cores: list[int], words: dict, lines: queue.Queue):
        self.number, self.last, self.shown = number, "", "starting"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONUNBUFFERED": "1"}
        # A session of its own: Ctrl-C in the terminal reaches the parent alone, which passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, ",".join(map(str, cores)), json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    def ended(self) -> int | None:
        """The exit code, once all that it printed is in the queue; None while it runs."""
        return None if self._reader.is_alive() else self.process.wait()

    def _read(self, lines: queue.Queue) -> None:
        assert self.process.stdout is not None  # a pipe
        for line in self.process.stdout:
            lines.put((self, line.decode(errors="replace").rstrip()))


def check(jobs: int) -> None:
    """Raises ValueError if so many workers cannot share this machine."""
    if jobs > 1 and (platform := jax.default_backend()) != "cpu":
        raise ValueError(
            f"--jobs {jobs} shares the cores of a CPU, and this is a {platform}; wanted --jobs 1, or a process for each device "
            f"with --shard"
        )


def shares(jobs: int) -> list[list[int]]:
    """The cores of each worker: disjoint where there are enough; none named where the system cannot choose them."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    cut = lambda number: len(cores) * number // jobs
    return [cores[cut(number) : cut(number + 1)] or [cores[number % len(cores)]] for number in range(jobs)]


def _cache() -> str | None:
    """The folder of compiled programs, if one is used."""
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def train_in_processes(store: Store, console: Console, jobs: int, together: int | None = None) -> None:
    """Trains the runs without a result in worker processes, and returns when all have ended.

    A worker that is killed is reported; the others take its run over, and if none is left, one is started again.
    Raises:
      Interrupted: a signal, after the workers have saved. WriteError: a worker could not write; the others have saved and ended.
    """
    words = {"folder": str(store.folder.absolute()), "width": console.width, "cache": _cache()}
    words |= {"shard": store.shard, "together": together}
    lines: queue.Queue = queue.Queue()
    parts = shares(jobs)
    alive, failed = [Worker(number, cores, words, lines) for number, cores in enumerate(parts, 1)], ""
    show = lambda: [f"{each.number}| {each.shown}" for each in alive]
    with _signals() as caught, Overall(console, store.keys, show) as overall:
        passed_on = 0
        while alive:
            _show(lines, console)
            for signum in caught[passed_on:]:
                # The first asks to save; after it, only an order from a person ends the workers at once.
                if not passed_on or signum in ORDERS:
                    _stop(alive, signal.SIGTERM if signum in ORDERS else signal.SIGUSR1)
                passed_on += 1
            runs = list(filter(store.is_mine, store.runs()))
            left = [run for run in runs if not run.settled]
            overall.update(runs, store.busy(left))
            for worker in [each for each in alive if each.ended() is not None]:
                alive.remove(worker)
                code = worker.process.returncode
                if caught or failed or code == 0:
                    continue
                if 0 < code < 128:
                    failed = worker.last or f"worker {worker.number} ended with code {code}"
                    _stop(alive, signal.SIGTERM)
                    continue
                print_line(
                    console,
                    _death(worker, [run.name for run in left if claims.holder(store.folder, run.name) == worker.process.pid]),
                )
                if not alive and left:
                    alive.append(again := Worker(worker.number, parts[worker.number - 1], words, lines))
                    print_line(console, f"worker {again.number} is started again: no other is left")
    _show(lines, console)
    if caught:
        print_line(console, f"stopped; continue with: {resume_command(store.folder)} --jobs {jobs}")
        raise Interrupted(caught[0])
    if failed:
        raise WriteError(failed.removeprefix("error: "))


def _show(lines: queue.Queue, console: Console) -> None:
    """Prints the lines that came, after LOOK seconds at the latest; on a terminal, one of a step is shown until the next."""
    with contextlib.suppress(queue.Empty):
        worker, line = lines.get(timeout=LOOK)
        while True:
            worker.last = worker.shown = line or worker.last
            if not (console.is_terminal and STEP.match(line)):
                print_line(console, f"{worker.number}| {line}")
            worker, line = lines.get_nowait()


def _stop(workers: list[Worker], signum: int) -> None:
    for each in workers:
        if each.process.poll() is None:
            each.process.send_signal(signum)


def _death(worker: Worker, runs: list[str]) -> str:
    """The end of a worker by a signal, in one line."""
    code = worker.process.returncode
    name = signal.Signals(-code if code < 0 else code - 128).name
    return f"worker {worker.number}, process {worker.process.pid}, ended by {name}" + "".join(
        f"; {run} is taken over" for run in runs
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Context in which signals that stop a run are collected instead. SIGHUP stays ignored where it was, under nohup."""
    caught: list[int] = []

    def collect(signum: int, _) -> None:
        caught.append(signum)

    own = [each for each in (*ORDERS, *WARNINGS) if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.signal(each, collect) for each in own} if threading.current_thread() is threading.main_thread() else {}
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
