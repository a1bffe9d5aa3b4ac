"""The section `optimizer`: how parameters change."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from seqzoo.fields import Section

# The settings that only some update rules, and only some schedules, have a use for.
USERS = {
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
    relative to the size of each parameter; "sgd" has momentum. The formulas are in seqzoo/training/optimizer.py."""
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

    @model_validator(mode="after")
    def _nothing_is_ignored(self):
        idle = {  # setting: (what makes it idle, what would give it a use)
            setting: (f"{by}={getattr(self, by)!r}", f"{by} one of {', '.join(users)}")
            for setting, (by, users) in USERS.items()
            if getattr(self, by) not in users
        }
        if self.schedule == "rsqrt" and self.cooldown_fraction is None:
            idle["final_fraction"] = ("schedule='rsqrt' without a cooldown", "a cooldown_fraction")
        if not self.noise:
            idle["noise_decay"] = (f"noise={self.noise}", "noise above 0")
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
