"""The section `optimizer`: update rule, learning rate and gradient processing."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from seqzoo.config.base import Section, as_text, check_if_registered
from seqzoo.specs import Length, NonNegative, Positive
from seqzoo.training.optim import schedules, update_rules
from seqzoo.training.optim.gradient_accumulation import parse_accumulate_steps


class Optimizer(Section):
    """The update rule, its learning rate, and the processing of gradients before it. A setting without an effect is refused."""

    rule: str = "adamw"
    """Update rule with settings: "adamw(weight_decay=0.1, b2=0.999)"; adamw, adamp, lamb, lion, sgd, adafactor, muon, or a
    registered one. "muon" acts on the matrices of the blocks, and AdamW on all else; "adafactor" takes the learning rate as
    relative to the size of each parameter. Formulas: seqzoo/training/optim/update_rules.py."""
    learning_rate: Positive = 1e-3
    """Largest learning rate, reached at the end of the warm-up."""
    schedule: str = "cosine"
    """Learning rate by step, with settings: "cosine(warmup_steps=100, final_fraction=0.1)"; constant, linear, cosine, wsd, rsqrt,
    or a registered one. Formulas: seqzoo/training/optim/schedules.py."""
    clip_norm: Positive | None = 1.0
    """Gradient clipping: largest global norm of the gradient; None: no clipping."""
    noise: NonNegative = 0.0
    """Gradient noise: variance, at the first step, of Gaussian noise on each number of the clipped gradient. Published: 0.01 to
    1."""
    noise_decay: NonNegative = 0.55
    """The noise's variance is noise / (1 + step)^noise_decay."""
    accumulate_steps: str = "1"
    """Gradient accumulation: batches of the task, one step each, per update. A number, FROM_STEP:NUMBER as in "0:1, 1000:2,
    3000:4", or "norm_test(threshold=0.5, initial_steps=2, max_steps=16)", which takes more batches the noisier the gradients are.
    An update is that of all its tokens at once, at the step of its last batch. To save memory instead: training.micro_batches."""
    skip_limit: Length | None = None
    """Skip a step whose loss or gradient norm is not finite, and end the run at this many in a row; None: the first ends it."""
    skip_spikes: Annotated[float, Field(gt=1)] | None = None
    """Skip also a step whose gradient norm is above this many times the mean of about the last 100 steps; None: never."""

    @field_validator("rule", "schedule", "accumulate_steps", mode="before")
    @classmethod
    def _typed_objects(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else as_text(value)

    @field_validator("rule")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        return check_if_registered(update_rules.registry, value)

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        return check_if_registered(schedules.registry, value)

    @field_validator("accumulate_steps")
    @classmethod
    def _readable_accumulate_steps(cls, value: str) -> str:
        parse_accumulate_steps(value)
        return value

    @model_validator(mode="after")
    def _nothing_is_ignored(self):
        idle = {}  # setting: (what makes it idle, what would give it a use)
        if not self.noise:
            idle["noise_decay"] = (f"noise={self.noise}", "noise above 0")
        if self.skip_limit is None:
            idle["skip_spikes"] = ("skip_limit=None", "a skip_limit")
        for setting, (why, instead) in idle.items():
            value, default = getattr(self, setting), type(self).model_fields[setting].default
            if value != default:
                raise ValueError(f"{setting}={value!r} has no use with {why}; wanted {setting}={default!r}, or {instead}")
        return self
