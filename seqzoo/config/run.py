"""The section `run`: folder, name, metric writers, profiling."""

import re
from typing import Literal

from pydantic import field_validator

from seqzoo.config.base import Section
from seqzoo.config.names import check_name


class Run(Section):
    """Folder and name of the run, copies of its metrics, profiling."""

    folder: str = "runs"
    """Folder of run folders. A run never writes into an existing one: a taken name gets a number."""
    name: str | None = None
    """Name of the run's own folder; None: made from task and mixers."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Copies of metrics.jsonl: "tensorboard" (extra `log`), "wandb" (extra `wandb`), or both."""
    profile: str | None = None
    """Steps to profile, as FIRST:LAST: "10:13" traces the three steps after the tenth into RUN/profile; None: none."""
    dump_hlo: bool = False
    """Write the program of the training step, before and after compilation, into RUN/hlo."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value):
        return value if value is None else check_name(value)

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
        """`profile` as numbers: the trace begins after the first number of steps and ends after the second."""
        if self.profile is None:
            return None
        first, last = map(int, self.profile.split(":"))
        return first, last
