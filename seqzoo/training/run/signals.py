"""Ctrl-C and SIGTERM: the first asks the run to save and stop, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable

from seqzoo.training.run import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal, after it had saved. A caller that does not handle it stops too."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"{signal.Signals(signum).name} at step {step}")
        self.signum = signum
        self.step = step

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects of a process that a signal ended."""
        return 128 + self.signum


class StopSignals:
    """Context in which the first signal is recorded: `caught` is its number, and `stopping()` tells if there was one.

    With several processes, a signal to any one of them stops all at the same call of `stopping()`: JAX has its own handler of
    SIGTERM, which must stay and informs the other processes; SIGINT is passed on to it as SIGTERM.

    A thread reads signals from a pipe; a Python handler would run between bytecodes of the main thread, and so wait for the minutes
    that XLA may take to compile. Outside the main thread no handler can be set, and the context does nothing.
    """

    def __init__(self, report: Callable[[str], None], exit: Callable[[int], None] = os._exit):
        self.caught: int | None = None
        self._report = report
        self._exit = exit
        self._installed = False
        self._several = distributed.is_multiprocess()
        self._asked = False

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

    def _own(self) -> tuple[int, ...]:
        return (signal.SIGINT,) if self._several else SIGNALS

    def _watch(self):
        while byte := os.read(self._read, 1):
            if byte[0] not in self._own():
                continue
            name = signal.Signals(byte[0]).name
            if self._asked:
                self._report(f"{name} again: ending at once, nothing is saved")
                self._exit(128 + byte[0])
            elif self._several:
                os.kill(os.getpid(), signal.SIGTERM)
                self._report(f"{name}: all processes save after some steps; once more ends this one at once, without saving")
            else:
                self.caught = byte[0]
                self._report(f"{name}: saving after this step; once more ends at once, without saving")
            self._asked = True
