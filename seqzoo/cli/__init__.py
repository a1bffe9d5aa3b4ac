"""The command line: `train.py [COMMAND | CONFIG.py] [--settings]`, installed as `seqzoo`."""

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from seqzoo import plugins
from seqzoo.cli import comparisons, help, inspect, plot, report, runs, text
from seqzoo.cli.shared import NAMES, UsageError, checked, fail, take_flag
from seqzoo.printing import forgiving_streams

__all__ = ["main"]

NO_IMPORTS, READING = "--no-imports", ("inspect", "plot", "report")
CACHE = "--compilation-cache"
TIMEOUT = "--distributed-timeout"
AGAIN = "start the same command again in all processes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` by default) and returns the exit code.

    0: done. 1: the run diverged, a run of a comparison has no result, no checkpoint loads, a file cannot be written, or data
    changed while it was read. 2: a setting, config or folder is wrong, and nothing was written. 128 + n: stopped by signal n,
    after saving. Output that cannot be printed changes none of them.
    """
    with forgiving_streams():
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        except KeyboardInterrupt:  # before or after training, which saves and raises Interrupted
            from seqzoo.training.run import distributed

            code = fail("stopped by Ctrl-C", 128 + signal.SIGINT)
            distributed.abort(code)  # others would be waited for at the end
            return code


def _run(arguments: list[str]) -> int:
    # Imported before anything can fail: the errors of training have exit codes of their own below.
    from seqzoo.data.atomic_io import error_reason
    from seqzoo.data.errors import DataError
    from seqzoo.data.json_files import DamagedFile
    from seqzoo.training import CheckpointError, Diverged, InitFromError, Interrupted, WriteError
    from seqzoo.training.run import distributed, profiling
    from seqzoo.training.run.lock import LockedError
    from seqzoo.training.run.run_dir import RunDirError

    try:
        given, arguments = take_flag("--distributed", arguments)  # not a setting: it differs between processes
        how = given[-1] if given else "off"
        caches, arguments = take_flag(CACHE, arguments)  # not a setting: it is executed, and a run may come from a stranger
        if "" in caches:
            raise UsageError(f"{CACHE} has no value; wanted a folder after it")
        waits, arguments = take_flag(TIMEOUT, arguments)
        checked(lambda: distributed.initialise(how, seconds_of(waits, how) if waits else distributed.PATIENCE))
    except UsageError as error:
        return fail(error, 2)
    console = Console(quiet=how != "off" and not distributed.is_main_process())
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    name, rest = (first, arguments[1:]) if first in COMMANDS else ("train", arguments)
    skip = NO_IMPORTS in rest
    if skip and name not in READING:
        return fail(f"{NO_IMPORTS} is for {', '.join(READING)}; {name} needs the modules that the config's `imports` names", 2)
    try:
        if caches:
            profiling.enable_compilation_cache(caches[-1])
        with plugins.skip_imports() if skip else contextlib.nullcontext(), distributed.ending_with_partner(lambda: AGAIN):
            return COMMANDS[name]([word for word in rest if word != NO_IMPORTS], console)
    except Interrupted as stopped:
        return stopped.exit_code
    except (Diverged, CheckpointError) as error:
        return fail(error, 1)
    except (WriteError, DataError) as error:
        code = fail(error, 1)
        distributed.abort(code)
        return code
    except (
        UsageError,
        InitFromError,
        RunDirError,
        LockedError,
        DamagedFile,
        distributed.DisagreementError,
        FileNotFoundError,
    ) as error:
        return fail(error, 2)
    except OSError as error:  # a path that the system refuses: no permission, too long a name, a folder where a file is wanted
        return fail(f"{error.filename}: {error_reason(error)}", 2)


def seconds_of(given: list[str], how: str) -> float:
    """The value of --distributed-timeout; raises UsageError."""
    word = given[-1]
    if how == "off":
        raise UsageError(f"{TIMEOUT} {word} is for several processes; wanted --distributed with it")
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise UsageError(f"{TIMEOUT} is {word!r}; wanted a number of seconds from 1 to 1000000")
    return seconds


_COMMANDS = (
    runs.train,
    runs.resume,
    comparisons.compare,
    runs.evaluate,
    inspect.inspect,
    plot.plot,
    report.report,
    text.prepare,
    text.generate,
    help.help,
)
COMMANDS: dict[str, Callable[[list[str], Console], int]] = dict(zip(NAMES, _COMMANDS, strict=True))
