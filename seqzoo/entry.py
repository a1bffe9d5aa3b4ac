"""Entry of the command line: quiet while it starts, and its name in what it prints.

Imports nothing but the standard library, since importing JAX takes seconds and Ctrl-C may come meanwhile.
"""

import os
import shlex
import signal
import sys
from pathlib import Path


def main() -> int:
    """Imports the command line and runs it; returns the exit code. Ctrl-C during the imports ends the process with code 130."""
    importing = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not if it is ignored, as in the background
    if importing:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from seqzoo import cli
    from seqzoo.training.run.allocator import keep_freed_memory

    if importing:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_freed_memory()
    return cli.main()


def program() -> str:
    """The command as it was called: "seqzoo", or else "train.py"."""
    return "seqzoo" if Path(sys.argv[0]).stem == "seqzoo" else "train.py"


def resume_command(folder: Path) -> str:
    """The command that continues a run, or the comparison that the run belongs to."""
    return shlex.join([program(), "resume", str(_comparison_of(folder) or folder)])


def more_steps_command(folder: Path) -> str:
    """The command that gives a run more steps; for one of a comparison, the command for all its runs that are still learning."""
    if whole := _comparison_of(folder):
        return f"{shlex.join([program(), 'compare', str(whole)])} --continue-unfinished --steps N"
    return f"{resume_command(folder)} --training.steps N --changed"


def _comparison_of(folder: Path) -> Path | None:
    """The folder of the comparison that a run belongs to; None if it belongs to none."""
    whole = folder.parent.parent
    return whole if folder.parent.name == "runs" and (whole / "config.json").is_file() else None
