"""Signals that stop a run: the first asks it to save and stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from seqzoo.training.run import distributed


def _present(*names: str) -> tuple[signal.Signals, ...]:
    """The signals of these names that the system has: Windows lacks most of them."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


ORDERS = _present("SIGINT", "SIGTERM", "SIGQUIT")  # Ctrl-C, kill, Ctrl-\: the second one ends the process at once
# The terminal is gone; a cluster's time is nearly over (Slurm's --signal=USR1@60); the limit of CPU time, repeated every second.
# None of them ends a process that saves, however often they come.
WARNINGS = _present("SIGHUP", "SIGUSR1", "SIGXCPU")


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal, after it had saved; without `step`, many were. A caller that does not handle it stops too."""

    def __init__(self, signum: int, step: int | None = None):
        super().__init__(signal.Signals(signum).name + ("" if step is None else f" at step {step}"))
        self.signum = signum
        self.step = step

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects of a process that a signal ended."""
        return 128 + self.signum


class StopSignals:
    """Context in which the first signal is recorded: `caught` is its number, and `stopping()` tells if there was one.

    With several processes, a signal to any one of them stops all at the same call of `stopping()`: JAX has its own handler of
    SIGTERM, which must stay and informs the other processes; every other signal is passed on to it as SIGTERM.

    A thread reads signals from a pipe; a Python handler would run between bytecodes of the main thread, and so wait for the minutes
    that XLA may take to compile. Outside the main thread no handler can be set, and the context does nothing. SIGHUP stays ignored
    where it was, under nohup.
    """

    def __init__(self, report: Callable[[str], None], exit: Callable[[int], None] = os._exit):
        self.caught: int | None = None
        self.doing = "this step"  # a stop waits for it
        self._report = report
        self._exit = exit
        self._installed = False
        self._several = distributed.is_multiprocess()
        self._ordered = False

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_handlers = {number: signal.signal(number, lambda *_: None) for number in self._own()}
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._installed = True
        return self

    def __exit__(self, *_):
        if not self._installed:
            return
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        os.close(self._write)
        self._watcher.join()
        os.close(self._read)

    def stopping(self) -> bool:
        """Tells if the run is to stop. With several processes, all must call it equally often."""
        if self._several and self.caught is None and distributed.reached_preemption():
            self.caught = signal.SIGTERM
            self._report("SIGTERM to one of the processes: saving after this step")
        return self.caught is not None

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Context in which a stop waits for something longer than a step; a signal that comes in it says so."""
        before, self.doing = self.doing, what
        try:
            yield
        finally:
            self.doing = before

    def _own(self) -> list[signal.Signals]:
        """The signals that this process handles itself."""
        jax_has = (signal.SIGTERM,) if self._several else ()
        nohup = [number for number in WARNINGS if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN]
        return [number for number in (*ORDERS, *WARNINGS) if number not in (*jax_has, *nohup)]

    def _watch(self):
        own, asked = {number.value for number in self._old_handlers}, False
        while byte := os.read(self._read, 1):
            if byte[0] not in own:
                continue
            number = signal.Signals(byte[0])
            order = number in ORDERS
            if order and self._ordered:
                self._report(f"{number.name} again: ending at once, nothing is saved")
                self._exit(128 + number)
            self._ordered |= order
            if asked and not order:
                continue
            once_more = "once more ends" if order else "Ctrl-C twice ends"
            if self._several:
                if not asked:
                    os.kill(os.getpid(), signal.SIGTERM)
                self._report(f"{number.name}: all processes save after some steps; {once_more} this one at once, without saving")
            else:
                self.caught = self.caught or number
                self._report(f"{number.name}: saving after {self.doing}; {once_more} at once, without saving")
            asked = True
