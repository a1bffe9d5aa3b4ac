"""A worker process of `--jobs`: trains runs of a comparison until none is left. Started by jobs.py with one JSON argument.

Its cores are chosen before JAX starts, because XLA makes as many threads as the process may use. It saves and stops when its
standard input closes: the process that started it is gone.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path


def main() -> int:
    """Returns the exit code: 0, if no run is left; 1 after a failed write; 128 + n after signal n."""
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, _exit)  # while no run is trained; the trainer has its own way
    threading.Thread(target=_watch_parent, daemon=True).start()
    given = json.loads(sys.argv[1])

    import jax
    from rich.console import Console

    from seqzoo import config
    from seqzoo.compare.runner import train_all
    from seqzoo.compare.shares import Shard
    from seqzoo.compare.store import open_store
    from seqzoo.printing import forgiving_streams
    from seqzoo.training import Interrupted, WriteError
    from seqzoo.training.run.allocator import keep_freed_memory

    keep_freed_memory()
    jax.config.update("jax_compilation_cache_dir", given["cache"])
    with forgiving_streams():
        console = Console(width=given["width"])
        folder = Path(given["folder"])
        comparison = config.load_json(folder / "config.json")
        assert isinstance(comparison, config.Comparison)  # the parent has opened it
        store = open_store(folder, comparison)
        if given["shard"]:
            store.take_shard(Shard(*given["shard"]))
        try:
            train_all(store, console, overall=Console(quiet=True), together=given["together"])
        except Interrupted as stopped:
            return stopped.exit_code
        except WriteError as error:
            console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            return 1
    return 0


def _exit(signum: int, _) -> None:
    raise SystemExit(128 + signum)


def _watch_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock a thread may not hold when Python ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
