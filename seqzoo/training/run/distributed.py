"""Several processes with one run: start, the one that writes, and values sent from it to all.

All of them run the same program on the same folder. Process 0 alone writes everything but checkpoints. A decision that depends on
the disk is made by process 0 and sent to the others by `from_main_process`, so that all take the same branch.
"""

import contextlib
import importlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from seqzoo.training.run import rendezvous

T = TypeVar("T")


class DisagreementError(ValueError):
    """Processes of one run that were started with different settings, versions or data. The message names what differs."""


WANTED = "off, auto, or ADDRESS:PORT/COUNT/INDEX such as 10.0.0.1:1234/2/0"

ERRORS = {  # that process 0 may send to the others: name, and the module that has it
    "CheckpointError": "seqzoo.training.run.checkpoint",
    "ConfigError": "seqzoo.config.base",
    "ConvertError": "seqzoo.convert.checkpoint",
    "DamagedFile": "seqzoo.data.json_files",
    "DataError": "seqzoo.data.errors",
    "LockedError": "seqzoo.training.run.lock",
    "RunDirError": "seqzoo.training.run.run_dir",
    "SpecError": "seqzoo.specs",
    "WriteError": "seqzoo.data.atomic_io",
    **dict.fromkeys(("FileNotFoundError", "ImportError", "OSError", "RuntimeError", "ValueError"), "builtins"),
}

PATIENCE = 120.0  # seconds

# In messages of Gloo (between CPUs), NCCL (between GPUs) and JAX's coordination service.
PARTNER_GONE = re.compile(r"Gloo|NCCL|heartbeat|coordination service|Barrier (?:failed|timed out)|UNAVAILABLE:", re.IGNORECASE)

# JAX counts the polls of a process, and every process must make the same ones.
_polls = itertools.count()


def initialise(how: str, seconds: float = PATIENCE) -> None:
    """Joins the other processes. Call it before anything asks JAX for a device. Each process says on stderr for whom it waits.

    Args:
      how: "off": this process is alone. "auto": settings of the cluster (`jax.distributed.initialize()`). Else
        ADDRESS:PORT/COUNT/INDEX: address of process 0, number of processes, index of this one.
      seconds: how long to wait for the others. After "auto", JAX waits, and ends the process with SIGABRT if some do not come.
    Raises:
      ValueError: another value, or an address that cannot be used; the others did not come, and which, or do not fit.
    """
    if how == "off":
        return
    if how == "auto":
        print(f"--distributed auto: joins the processes of the cluster, in at most {seconds:g} s", file=sys.stderr, flush=True)
        try:
            jax.distributed.initialize(initialization_timeout=math.ceil(seconds))
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"--distributed auto: JAX does not join a cluster here ({reason}); wanted {WANTED}") from error
        return
    try:
        group = rendezvous.parse(how)
    except ValueError as error:
        raise ValueError(f"--distributed is {how!r}; wanted {WANTED}, {error}") from error
    rendezvous.meet(group, seconds)
    jax.distributed.initialize(
        coordinator_address=group.address,
        num_processes=group.count,
        process_id=group.index,
        initialization_timeout=math.ceil(seconds),
    )


def is_multiprocess() -> bool:
    """Tells if there are several processes."""
    return jax.process_count() > 1


def is_main_process() -> bool:
    """Tells if this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def from_main_process(call: Callable[[], T]) -> T:
    """The result or the exception of `call()` in process 0, in every process. The others do not call it.

    Both travel as JSON. The result is made of what JSON has: a tuple arrives as a list. An exception arrives with its message, as
    one of ERRORS, its own class or the nearest above it; any other as a RuntimeError that names its class.
    """
    if not is_multiprocess():
        return call()
    message, error = "null", None
    if is_main_process():
        try:
            message = json.dumps({"value": call()})
        except Exception as caught:  # any error is sent: the other processes wait for a message
            error, message = caught, json.dumps(_described(caught))
    found = json.loads(_broadcast(message.encode()))
    if error is not None:
        raise error
    if "value" not in found:
        raise getattr(importlib.import_module(ERRORS[found["error"]]), found["error"])(found["message"])
    return found["value"]


def _described(error: Exception) -> dict[str, str]:
    """The class of an error among ERRORS, and its message."""
    for kind in type(error).__mro__:
        if ERRORS.get(kind.__name__) == kind.__module__:
            return {"error": kind.__name__, "message": str(error)}
    return {"error": "RuntimeError", "message": f"{type(error).__name__} in process 0: {error}"}


def check_agreement(found: dict[str, str]) -> None:
    """Raises DisagreementError in every process unless all have the same values: settings, versions, data.

    Processes that train with different settings would finish, and with wrong numbers. Every process must call it.
    """
    if not is_multiprocess():
        return
    wanted: dict[str, str] = json.loads(_broadcast(json.dumps(found).encode()))
    differing = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    counts = np.ravel(multihost_utils.process_allgather(np.int32(len(differing))))
    if not counts.any():
        return
    if differing:
        shown = "; ".join(f"{name} is {found.get(name, 'absent')} here, {wanted.get(name, 'absent')} there" for name in differing)
        raise DisagreementError(f"process {jax.process_index()} differs from process 0: {shown}; start all with the same command")
    others = ", ".join(str(index) for index, count in enumerate(counts) if count)
    raise DisagreementError(f"process {others} differs from process 0 in settings, versions or data; its own message says in which")


def _broadcast(message: bytes) -> bytes:
    """Process 0's message in all processes. Two rounds, since arrays must have the same shape in all processes."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.zeros(size, np.uint8)
    if is_main_process():
        padded[:] = np.frombuffer(message, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()


def reached_preemption() -> bool:
    """Tells if all processes are to stop here, because one of them received SIGTERM. True once, in the same call of each.

    Every process must call it equally often. JAX checks for the signal about once a second, so that it takes some calls.
    """
    return multihost_utils.reached_preemption_sync_point(next(_polls))


def abort(code: int) -> None:
    """Ends this process at once if there are others, which may wait for it for a long time.

    For errors of this process alone. JAX ends the others when it detects that one is gone.
    """
    if jax.distributed.is_initialized() and is_multiprocess():  # asked in this order, since the second one starts the devices
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def ending_with_partner(advice: Callable[[], str]) -> Iterator[None]:
    """Context that ends this process, with exit code 1 and the advice in its last line, when another process has ended.

    At once, since all that waits for the other process, such as JAX's shutdown, would take minutes. Only as far as JAX lets the
    error arrive here: it may notice first, and end this process with SIGABRT.
    """
    try:
        yield
    except Exception as error:
        if not (is_multiprocess() and PARTNER_GONE.search(str(error))):
            raise
        reason = str(error).strip().splitlines()[0]
        print(f"error: another process of this run has ended ({reason}); {advice()}", file=sys.stderr, flush=True)
        abort(1)


def check_mesh(mesh: Mesh) -> None:
    """Raises ValueError if a process would have no device in the mesh: it could not take part in the run."""
    if is_multiprocess() and mesh.size != jax.device_count():
        raise ValueError(
            f"the mesh uses {mesh.size} of {jax.device_count()} devices; wanted all of them, as they belong to "
            f"{jax.process_count()} processes: change mesh.fsdp, say to -1"
        )
