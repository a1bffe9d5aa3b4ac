"""Checkpoints: one Orbax directory per step, written in the background. Reading falls back to older ones and reports it.

A directory is a checkpoint once Orbax has renamed it to its number; before that, a killed process leaves a temporary directory.
Each holds the SHA-256 of its files, since nothing else would detect a changed byte in the parameters. All files are on the disk
before the renaming, and the new name is before the checkpoint counts: a power cut leaves a whole checkpoint or none.
"""

import contextlib
import errno
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from seqzoo.data.atomic_io import WriteError, error_reason, sync, sync_tree, write_errors, write_json
from seqzoo.data.json_files import DamagedFile, open_regular, read_json, refuse_irregular
from seqzoo.training.run import distributed
from seqzoo.training.run.tensorstore_leak import without_leak
from seqzoo.training.state import State

SAVED = "saved.json"  # in the run folder: the step of its latest complete checkpoint
DIGESTS = "sha256.json"
ABOUT = "about.json"  # config and git revision, for a checkpoint that is moved out of its run folder
REQUIRED = (ABOUT, "_METADATA", "manifest.ocdbt")  # besides the digests; Orbax reports a save without its manifest as done
WRITTEN_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")  # by Orbax when the save is complete, after the digests
TEMPORARY = f"*{ocp.utils.TMP_DIR_SUFFIX}*"


class CheckpointError(RuntimeError):
    """Checkpoints exist, but none of them loads. A start from scratch would lose the run, so it never happens silently."""


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Context in which Orbax leaks nothing, and does not print a failed save three times with its traceback: here it becomes one
    error, with that traceback as its cause.

    Where several `Checkpoints` are open at once, one is needed around all of them: they may be closed in any order.
    """
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with without_leak():
            yield
    finally:
        log.setLevel(before)


class Checkpoints:
    """The checkpoints of a run, `folder/<step>`; the latest `keep` stay, and `best`, if the run has one.

    Reading works at any time, and changes nothing. Writing works inside the context, which ends when the last save is on disk:

        with checkpoints:
            state = checkpoints.resume(abstract, report)
            checkpoints.save(state)

    With several processes all make the same calls; process 0 lists, checks, renames and removes.

    Args:
      folder: of the checkpoints.
      keep: how many of the latest stay.
      about: what is written into each, JSON.
      record: a file that tells the step of the latest complete one, outside `folder`, which may be lost as a whole; None: none.
    """

    def __init__(self, folder: Path, keep: int = 1, about: dict[str, Any] | None = None, record: Path | None = None):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.about = about or {}
        self.record = record
        self.best: int | None = None  # the step of a checkpoint that is never removed
        self.latest: int | None = None  # the step of the last state that `resume` gave or `save` was given
        self.complete: int | None = None  # the last of them that is known to be on disk
        self._saving: Path | None = None
        self._about_saving: dict[str, Any] = {}
        self._unproved: State | None = None  # shapes of the state, until the first checkpoint of the run has been read back

    def __enter__(self):
        # If a directory that is created in the background fails, threads wait for it for ever, and the process does not end.
        options = ocp.options.AsyncOptions(post_finalization_callback=self._digest, create_directories_asynchronously=False)
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(quiet_orbax())
        self._checkpointer = ocp.StandardCheckpointer(async_options=options)
        self._closing.callback(self._checkpointer.close)
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.wait()
        except WriteError as failed:
            raise (failed if error is None else WriteError(f"{failed}; before that: {error}")) from error
        finally:
            self._closing.close()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def about_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The latest checkpoint that records the config of its run, and that config; None if there is none. Checks no digests."""
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                settings = read_json(path / ABOUT, absent={}).get("config")
            except DamagedFile:  # its digest will not be right either: `resume` reports it and takes an older one
                continue
            if isinstance(settings, dict):
                return path, settings
        return None

    def save(self, state: State, **record: Any) -> None:
        """Starts to write the state under its own step; the caller may donate it at once. `record` joins the step in saved.json.

        First the previous save is completed, and checkpoints older than the latest `keep`, except the best, are removed: while
        this one is written, `keep` others are on the disk.
        Raises:
          WriteError: this save cannot start, or the previous one failed.
        """
        self.wait()
        step = int(state["step"])
        path = self.folder / str(step)
        if not self.folder.is_dir():  # Orbax would create it again, without the rest of the run folder
            raise WriteError(f"cannot write {path}: {self.folder} is not a folder any more")
        self._saving, self._about_saving = path, record
        self._or_write_error(lambda: self._checkpointer.save(path, state))
        self.latest = step

    def wait(self) -> None:
        """Waits until the last save is on disk, and removes older checkpoints. Raises WriteError if the save failed.

        The first checkpoint of a run is read back, all its files and its shapes, and one that does not load is such a failure.
        """
        if self._saving is None:
            return
        self._or_write_error(self._checkpointer.wait_until_finished)
        path, self._saving = self._saving, None
        writes = distributed.is_main_process() and self.folder.is_dir()  # the next save reports a folder that is gone
        if writes:
            self._prove(path)
        self.complete = self.latest
        if writes:
            self._record(**self._about_saving)
            for step in set(self.steps()[: -self.keep]) - {self.best}:
                with write_errors(self.folder / str(step)):
                    shutil.rmtree(self.folder / str(step))

    def _prove(self, path: Path) -> None:
        """Makes the name of a checkpoint durable, and reads the first one back. Raises WriteError."""
        with write_errors(path):
            sync(self.folder)
        if self._unproved is not None and (problem := damage(path) or misfit(path, self._unproved)):
            raise WriteError(f"cannot write {path}: read back, it does not load ({problem})")
        self._unproved = None

    def restore(self, abstract: State, report: Callable[[str], None], step: int | None = None) -> State | None:
        """The latest state that loads, with the shardings of `abstract`; None if there is no checkpoint at all.

        A checkpoint that does not load is reported. With `step` only that one is tried.
        Raises:
          CheckpointError: checkpoints exist and none loads. FileNotFoundError: there is none of that step.
        """
        if step is not None and step not in (steps := distributed.from_main_process(self.steps)):
            raise FileNotFoundError(
                f"{self.folder} has no checkpoint of step {step}; there are {', '.join(map(str, steps)) or 'none'}"
            )
        return self._latest(abstract, report, step)[0]

    def resume(self, abstract: State, report: Callable[[str], None]) -> State | None:
        """`restore`, for a run that will write here from now on.

        Incomplete checkpoints of a killed process are removed, and a checkpoint that does not load is set aside as
        "unreadable-<step>", so that its step can be written again; both are reported.
        Raises:
          CheckpointError: as in `restore`; all checkpoints stay. WriteError: the folder cannot be changed.
        """
        for name in distributed.from_main_process(self._clear):
            report(f"removed {name}: its process ended while writing it")
        state, bad = self._latest(abstract, report)
        self.latest = self.complete = None if state is None else int(state["step"])
        self._unproved = abstract if state is None else None
        if distributed.is_main_process():
            self._record()
        for step, aside in distributed.from_main_process(lambda: self._set_aside(bad)):
            report(f"going back to step {self.latest}; the checkpoint of step {step} is kept as {aside}")
        return state

    def _latest(
        self, abstract: State, report: Callable[[str], None], only: int | None = None
    ) -> tuple[State | None, dict[int, str]]:
        """The latest state that loads, and the defects of the checkpoints after it."""
        failed: dict[int, str] = {}
        for step in reversed(distributed.from_main_process(self.steps) if only is None else [only]):
            path = self.folder / str(step)
            problem = distributed.from_main_process(lambda path=path: damage(path) or misfit(path, abstract))
            if problem is None:
                try:
                    with ocp.StandardCheckpointer() as checkpointer:
                        state = checkpointer.restore(path, abstract)
                    if (found := int(state["step"])) == step:
                        return state, failed
                    problem = f"it holds step {found}: its folder was renamed"
                except Exception as error:  # any failure means the same here: try an older one
                    problem = error_reason(error)
            failed[step] = problem
            report(f"checkpoint {path} does not load: {problem}")
        if failed:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in failed.items())
            raise CheckpointError(f"no checkpoint in {self.folder} loads ({reasons}); wanted its files and its settings as saved")
        return None, failed

    def _clear(self) -> list[str]:
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        halves = sorted(self.folder.glob(TEMPORARY))
        for half in halves:
            with write_errors(half):
                shutil.rmtree(half)
        return [half.name for half in halves]

    def _record(self, **more: Any) -> None:
        """Writes the record. It comes after what it tells of: a process may be killed in between, and the run still resumes."""
        if self.record is not None:
            write_json(self.record, {"step": -1 if self.complete is None else self.complete, **more})

    def _set_aside(self, bad: dict[int, str]) -> list[tuple[int, str]]:
        asides = []
        for step in bad:
            aside = _free(self.folder / f"unreadable-{step}")
            with write_errors(aside):
                (self.folder / str(step)).rename(aside)
            asides.append((step, aside.name))
        return asides

    def _digest(self) -> None:
        """Writes the digests. Orbax calls it in process 0 when all files are complete, before they become a checkpoint."""
        if self._saving is None:
            return
        (path,) = self.folder.glob(f"{self._saving.name}{TEMPORARY[1:]}")
        write_json(path / ABOUT, self.about)
        files = _files(path)
        if missing := [name for name in REQUIRED if name not in files]:
            raise FileNotFoundError(errno.ENOENT, f"{', '.join(missing)} was not written")
        sync_tree(path)
        write_json(path / DIGESTS, {name: _sha256(path / name) for name in files})

    def _or_write_error(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # Orbax and TensorStore have their own types for errors of the system
            path, self._saving = self._saving, None
            raise WriteError(f"cannot write {path}: {error_reason(error)}") from error


def damage(path: Path) -> str | None:
    """Defect of a checkpoint: a file that is missing or not as it was written; None if there is none. Reads all files."""
    try:
        for file in path.rglob("*"):
            if file.name in WRITTEN_LATER or not file.is_dir():
                refuse_irregular(file)  # Orbax would read a named pipe for ever
        wanted = read_json(path / DIGESTS)
        found = {name: _sha256(path / name) for name in _files(path)}
    except (OSError, ValueError) as error:
        return f"{DIGESTS}: {error_reason(error)}"
    if missing := [name for name in dict.fromkeys([*wanted, *REQUIRED]) if name not in found]:
        return f"{', '.join(missing)} is missing"
    if unknown := [name for name in found if name not in wanted]:
        return f"{', '.join(unknown)} is not listed in {DIGESTS}"
    changed = [name for name in wanted if found[name] != wanted[name]]
    return f"{', '.join(changed)} is not as it was written" if changed else None


def misfit(path: Path, abstract: State) -> str | None:
    """The parts of a checkpoint, by name, that have other shapes than in `abstract`; None if all fit.

    Orbax would find the same, but in pages of text of TensorStore.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        held: Any = checkpointer.metadata(path).item_metadata
    if held is None:
        return "Orbax finds no arrays in it"
    there, here = (_shapes(tree.get("params", {})) for tree in (held.tree, abstract))
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    shown = [f"parameter {name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in names]
    if shown:
        return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")
    there, here = (sorted(_shapes(tree.get("opt_state", {})).values()) for tree in (held.tree, abstract))
    if there != here:
        return (
            f"its optimizer state has {len(there)} arrays, wanted {len(here)} or of other shapes (optimizer.rule, accumulate_steps)"
        )
    for part, setting in {"ema": "training.ema", "carry": "task"}.items():
        there, here = (_shapes(tree.get(part, {})) for tree in (held.tree, abstract))
        if there != here:
            return f"its {part} has {len(there)} arrays, wanted {len(here)} or of other shapes ({setting})"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its dotted name, of a random key that of its words: Orbax stores these."""

    def shape(leaf):
        is_key = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return tuple((jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf).shape)

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    name = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
    return {".".join(map(name, path)): shape(leaf) for path, leaf in leaves if hasattr(leaf, "shape")}


def _files(path: Path) -> list[str]:
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return [name for name in names if name not in (DIGESTS, *WRITTEN_LATER)]


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free(path: Path) -> Path:
    number = 2
    candidate = path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
