"""The section `optimizer`: how parameters change."""

import itertools
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from seqzoo.config.base import Section

# The settings that only some update rules, and only some schedules, have a use for.
APPLIES_TO = {
    "betas": ("name", ("adamw", "adamp", "lamb", "lion", "muon")),
    "epsilon": ("name", ("adamw", "adamp", "lamb", "muon")),
    "momentum": ("name", ("sgd", "muon")),
    "final_fraction": ("schedule", ("linear", "cosine", "wsd", "rsqrt")),
    "cooldown_fraction": ("schedule", ("wsd", "rsqrt")),
}


class Optimizer(Section):
    """The update rule with its learning rate, and what is done to gradients before it. A setting without a use is refused."""

    name: Literal["adamw", "adamp", "lamb", "lion", "sgd", "adafactor", "muon"] = "adamw"
    """The update rule. "muon" acts on the matrices of the blocks, and AdamW on all else; "adafactor" takes the learning rate as
    relative to the size of each parameter; "sgd" has momentum. The formulas are in seqzoo/training/optim/optimizer.py."""
    learning_rate: float = Field(1e-3, gt=0)
    """The largest learning rate, reached at the end of the warm-up."""
    schedule: Literal["constant", "linear", "cosine", "wsd", "rsqrt"] = "cosine"
    """The learning rate after the warm-up: the same; falling to the last step, straight or as a cosine; the same up to a straight
    cooldown ("warm-up, stable, decay"); falling as sqrt(warmup_steps / step)."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """Where the schedule ends, at the last step: as a fraction of learning_rate, or of where rsqrt would end without a cooldown."""
    cooldown_fraction: float | None = Field(None, gt=0, le=1)
    """The part of all steps, the last, in which wsd and rsqrt fall to final_fraction; None: 0.2 for wsd, none for rsqrt."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled, times the learning rate; on what decay_all says."""
    decay_all: bool = False
    """Whether weight decay acts on all parameters. If not: on matrices only, and not on those that their mixer marks with
    decay=False."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean and of the running mean square of the gradient. Of lion: the mean's share in a step, its decay."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the mean square."""
    momentum: float | None = Field(None, ge=0, lt=1)
    """Decay of the running sum or mean of the gradient, for sgd and muon; None: 0.9 and 0.95."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest global norm of the gradient; None: no clipping."""
    noise: float = Field(0.0, ge=0)
    """Variance, at the first step, of Gaussian noise on each number of the clipped gradient. Published: 0.01 to 1."""
    noise_decay: float = Field(0.55, ge=0)
    """The noise's variance is noise / (1 + step)^noise_decay."""
    accumulate_steps: str = "1"
    """How many batches of the task, one step each, make an update: a number, or FROM_STEP:NUMBER, as in "0:1, 1000:2, 3000:4". The
    update is that of all of them at once, by tokens; it comes at the last one's step, and has that step's learning rate."""
    norm_test: float | None = Field(None, gt=0, lt=1)
    """Take more batches for the next update where the gradient's standard deviation is above this part of its norm: the norm test
    (Lau et al. 2024). `accumulate_steps` is then where to begin, at least 2. Published: 0.1 to 0.5. None: `accumulate_steps` alone
    decides."""
    max_accumulate_steps: int = Field(16, ge=2)
    """How many batches an update has at most by the norm test, which takes powers of two."""
    skip_limit: int | None = Field(None, ge=1)
    """Leave out a step whose loss or gradient norm is not finite, and end the run at so many in a row; None: the first ends it."""
    skip_spikes: float | None = Field(None, gt=1)
    """Leave out also a step whose gradient norm is above this many times the mean of about the last 100 steps; None: never."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, value):
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"{value}: wanted both in [0, 1)")
        return value

    @field_validator("accumulate_steps")
    @classmethod
    def _from_step_to_number(cls, value):
        parts = _numbers(value)
        if (
            not parts
            or parts[0][0] != 0
            or any(a >= b for (a, _), (b, _) in itertools.pairwise(parts))
            or not all(n for _, n in parts)
        ):
            raise ValueError(
                f"{value!r}: wanted a number of at least 1, or FROM_STEP:NUMBER from step 0 on, in order: '0:1, 1000:2, 3000:4'"
            )
        return value

    @property
    def numbers(self) -> tuple[tuple[int, int], ...]:
        """`accumulate_steps` as (first step, number) pairs."""
        return _numbers(self.accumulate_steps)

    @model_validator(mode="after")
    def _norm_test_has_an_estimate_and_room(self):
        if self.norm_test is None:
            return self
        first = self.numbers[0][1]
        if len(self.numbers) > 1 or first < 2:
            raise ValueError(
                f"accumulate_steps={self.accumulate_steps!r}, but norm_test={self.norm_test} takes the variance over the "
                f"batches of an update, and sets their number itself; wanted one number of at least 2"
            )
        if self.max_accumulate_steps.bit_count() != 1 or self.max_accumulate_steps <= first:
            raise ValueError(
                f"max_accumulate_steps={self.max_accumulate_steps}: wanted a power of two above "
                f"accumulate_steps={self.accumulate_steps!r}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self):
        idle = {  # setting: (what makes it idle, what would give it a use)
            setting: (f"{by}={getattr(self, by)!r}", f"{by} one of {', '.join(users)}")
            for setting, (by, users) in APPLIES_TO.items()
            if getattr(self, by) not in users
        }
        if self.schedule == "rsqrt" and self.cooldown_fraction is None:
            idle["final_fraction"] = ("schedule='rsqrt' without a cooldown", "a cooldown_fraction")
        if not self.noise:
            idle["noise_decay"] = (f"noise={self.noise}", "noise above 0")
        if self.norm_test is None:
            idle["max_accumulate_steps"] = ("norm_test=None", "a norm_test")
        if self.skip_limit is None:
            idle["skip_spikes"] = ("skip_limit=None", "a skip_limit")
        for setting, (why, instead) in idle.items():
            value, default = getattr(self, setting), type(self).model_fields[setting].default
            if value != default:
                raise ValueError(f"{setting}={value!r} has no use with {why}; wanted {setting}={default!r}, or {instead}")
        return self

    @model_validator(mode="after")
    def _rsqrt_has_a_warm_up(self):
        if self.schedule == "rsqrt" and not self.warmup_steps:
            raise ValueError("warmup_steps=0, but schedule='rsqrt' falls as sqrt(warmup_steps / step); wanted at least 1")
        return self


def _numbers(accumulate_steps: str) -> tuple[tuple[int, int], ...]:
    """What `accumulate_steps` says, "0:1, 1000:2" as ((0, 1), (1000, 2)), "4" as ((0, 4),); () of what is neither."""
    parts = [re.fullmatch(r"\s*(?:(\d+):)?(\d+)\s*", part) for part in accumulate_steps.split(",")]
    if not all(parts) or (len(parts) > 1 and any(part[1] is None for part in parts)):
        return ()
    return tuple((int(part[1] or 0), int(part[2])) for part in parts)
