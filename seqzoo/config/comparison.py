"""Comparisons: many experiments that differ along axes."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import tyro
from pydantic import field_validator, model_validator

from seqzoo.config.base import Axes, Section
from seqzoo.config.experiment import Experiment, replace
from seqzoo.config.names import shortened
from seqzoo.specs import Seed, parse

SEED = "training.seed"


class Comparison(Section):
    """One experiment for every combination of values on named axes."""

    # The empty name puts the base's settings at the top of the command line, where an Experiment has them.
    base: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()
    """Settings of all experiments."""
    axes: Axes
    """Settings and their values: {"model.layers": ("gla", "softmax"), "optimizer.learning_rate": (1e-3, 3e-3)}. Settings that
    change together make a named axis: {"size": {"small": {"model.depth": 2, "model.d_model": 64}, "large": {...}}}; if two named
    axes set the same setting, the later one counts."""
    seeds_of_best: tuple[Seed, ...] = ()
    """Further values of training.seed, trained in a second stage only for the best learning rate of each label, as the first stage
    chose it on validation. The table then has median and range over all seeds at these settings."""

    @field_validator("axes", mode="before")
    @classmethod
    def _named_axes_with_values(cls, value):
        for path, values in value.items() if isinstance(value, Mapping) else ():
            if isinstance(values, Mapping):
                if not values or not all(isinstance(each, Mapping) and each for each in values.values()):
                    raise ValueError(f"{path!r} has {values!r}, wanted {{name: {{setting: value}}}} with at least one of each")
            elif isinstance(values, str) or not isinstance(values, tuple | list) or not values:
                raise ValueError(f"{path!r} has {values!r}, wanted a tuple of at least one value")
        return value

    @model_validator(mode="after")
    def _no_axis_hides_another(self):
        for path in self.axes:
            if path not in self.named and (others := [name for name, paths in self.named.items() if path in paths]):
                raise ValueError(f"{path} is an axis, and {', '.join(map(repr, others))} sets it too; wanted one of them")
        return self

    @model_validator(mode="after")
    def _later_seeds_are_new(self):
        if not self.seeds_of_best:
            return self
        if names := [name for name, paths in self.named.items() if SEED in paths]:
            raise ValueError(
                f"seeds_of_best={self.seeds_of_best}, and the axis {names[0]!r} sets {SEED}; wanted {SEED} as an axis of its own"
            )
        first = self.axes.get(SEED, (self.base.training.seed,))
        seeds = [*first, *self.seeds_of_best]
        if again := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(
                f"seeds_of_best={self.seeds_of_best} repeats {again[0]}; wanted seeds besides {', '.join(map(str, first))}"
            )
        return self

    @model_validator(mode="after")
    def _every_experiment_is_valid(self):
        for _, experiment in self.experiments():
            if (after := experiment.training.stop_after_steps) is not None:
                raise ValueError(f"training.stop_after_steps={after}, but a comparison needs finished runs; wanted None")
        return self

    @property
    def name(self) -> str:
        """`base.run.name`, or a name made from the task."""
        return self.base.run.name or shortened(f"{parse(self.base.task).name}-comparison")

    @property
    def named(self) -> dict[str, set[str]]:
        """The named axes, each with the settings that it changes."""
        return {axis: set().union(*values.values()) for axis, values in self.axes.items() if isinstance(values, Mapping)}

    @property
    def varied(self) -> set[str]:
        """Every setting that an axis changes."""
        return set().union(*self.named.values(), self.axes.keys() - self.named.keys())

    def experiments(self) -> Iterator[tuple[dict[str, Any], Experiment]]:
        """Each combination as ({axis: value or name}, experiment), the last axis varying fastest."""
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            changed = {}
            for axis, value in point.items():
                values_of = self.axes[axis]
                changed |= values_of[value] if isinstance(values_of, dict) else {axis: value}
            yield point, replace(self.base, changed)
