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

    if importing:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


def program() -> str:
    """The command as it was called: "seqzoo", or else "train.py"."""
    return "seqzoo" if Path(sys.argv[0]).stem == "seqzoo" else "train.py"


def resume_command(folder: Path) -> str:
    """The command that continues a run, or the comparison that the run belongs to."""
    whole = folder.parent.parent
    member = folder.parent.name == "runs" and (whole / "config.json").is_file()
    return shlex.join([program(), "resume", str(whole if member else folder)])
