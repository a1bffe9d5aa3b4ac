"""The section `run`: where a run is kept."""

import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from seqzoo.config.base import Section


class Run(Section):
    """Where the run is kept, and what can be seen of it."""

    folder: str = "runs"
    """Folder of run folders. A run never writes into an existing one: a taken name gets a number."""
    name: str | None = None
    """Name of the run's own folder; None: made from task and mixers."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside metrics.jsonl: "tensorboard" (extra `log`), "wandb" (extra `wandb`), or both."""
    profile: str | None = None
    """Steps to profile, as FIRST:LAST: "10:13" traces the three steps after the tenth into RUN/profile; None: none."""
    dump_hlo: bool = False
    """Whether to write what the training step is compiled from, and to, into RUN/hlo."""
    compilation_cache: str | None = None
    """Folder where JAX keeps compiled programs for later runs; None: as JAX's own settings say, by default nowhere."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value):
        if value is not None and (not value or Path(value).name != value):
            raise ValueError(f"{value!r}: wanted the name of one folder; run.folder says where it lies")
        return value

    @field_validator("profile")
    @classmethod
    def _first_and_last(cls, value):
        found = re.fullmatch(r"(\d+):(\d+)", "0:1" if value is None else value)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"{value!r}: wanted FIRST:LAST with FIRST < LAST, such as '10:13' for the three steps after the tenth")
        return value

    @field_validator("log")
    @classmethod
    def _each_once(cls, value):
        if len(set(value)) < len(value):
            raise ValueError(f"{value}: wanted each once")
        return value

    @property
    def window(self) -> tuple[int, int] | None:
        """`profile` as numbers: traced from when the first number of steps are done until the second are."""
        return None if self.profile is None else tuple(map(int, self.profile.split(":")))
