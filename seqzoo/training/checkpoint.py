"""Checkpoints: one Orbax directory per step. Writing is atomic; reading falls back to older ones, aloud."""

import shutil
from collections.abc import Callable
from pathlib import Path

import orbax.checkpoint as ocp

from seqzoo.training.state import State


class CheckpointError(RuntimeError):
    """Checkpoints exist, but none of them loads. Starting from scratch would lose the run, so nobody does that silently."""


class Checkpoints:
    """The checkpoints of a run, `folder/<step>`; the latest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 1):
        self.folder = Path(folder).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first. Orbax renames a directory to its number when it is complete."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())

    def save(self, state: State) -> Path:
        """Writes the state under its own step, waits until it is on disk, and removes what is older than the latest `keep`."""
        path = self.folder / str(int(state["step"]))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / str(step))
        return path

    def restore(self, abstract: State, say: Callable[[str], None]) -> State | None:
        """The latest state that loads, with the shardings of `abstract`; None if there is no checkpoint at all.

        One that does not load is told to `say` and set aside as "unreadable-<step>", so that its step can be written again.
        Raises:
          CheckpointError: there are checkpoints, and none loads; all are left where they are.
        """
        failed = {}
        for step in reversed(self.steps()):
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    state = checkpointer.restore(self.folder / str(step), abstract)
            except Exception as error:  # any failure means the same here: this one is of no use, is there an older one?
                failed[step] = error
                say(f"checkpoint {self.folder / str(step)} does not load: {_first_line(error)}")
                continue
            for bad in failed:
                aside = _free(self.folder / f"unreadable-{bad}")
                (self.folder / str(bad)).rename(aside)
                say(f"going back to step {step}; the checkpoint of step {bad} is kept as {aside.name}")
            return state
        if failed:
            reasons = "; ".join(f"step {step}: {_first_line(error)}" for step, error in failed.items())
            raise CheckpointError(f"no checkpoint in {self.folder} loads ({reasons}). Remove the folder to start from scratch.")
        return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _free(path: Path) -> Path:
    number = 2
    candidate = path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate
