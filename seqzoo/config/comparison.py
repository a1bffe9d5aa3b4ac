"""Comparisons: many experiments that differ along axes, with equal budgets where that is asked for."""

import ast
import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import tyro
from pydantic import Field, field_validator, model_validator

from seqzoo.config.base import Axes, Section, as_text, one_word
from seqzoo.config.experiment import Experiment, replace
from seqzoo.config.names import shortened
from seqzoo.mixers.shapes import Measure
from seqzoo.specs import Seed, Spec, did_you_mean, parse, split

LAYERS, RATE, SEED = "model.layers", "optimizer.learning_rate", "training.seed"
BUDGET, SHAPE, MATCHED = "budget", "shape", "matched"  # in the points of a comparison with budgets, beside its axes
RATES = 3  # with fewer, a comparison is not tuned

Budget = Annotated[
    int | tuple[int, ...] | None,
    one_word(lambda text: ast.literal_eval(text) if text.strip() else None, lambda value: str(value), "N[,N...]"),
]
Names = Annotated[tuple[str, ...] | None, one_word(split, lambda value: ", ".join(value or ()), "SETTINGS")]


class Comparison(Section):
    """One experiment for every combination of values on named axes.

    With a budget, one for each budget and each shape of the mixers that meets it: docs/comparing.md.
    """

    # The empty name puts the base's settings at the top of the command line, where an Experiment has them.
    base: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()
    """Settings of all experiments."""
    axes: Axes
    """Settings and their values: {"model.layers": ("gla", "softmax"), "optimizer.learning_rate": (1e-3, 3e-3)}. Settings that
    change together make a named axis: {"size": {"small": {"model.depth": 2, "model.d_model": 64}, "large": {...}}}; if two named
    axes set the same setting, the later one counts."""
    match: Measure | None = None
    """Number that is equal for all mixers: "state_bytes", the recurrent memory per row as papers count it; "parameters" of the
    whole model; or its forward "flops" on one row. The settings of the mixers are solved for; a setting that is given stays."""
    budget: Budget = None
    """That number, or several: (1024, 4096, 16384). It is met within 5 %; a mixer that cannot is left out, with the reason."""
    shapes: Annotated[int, Field(ge=1, le=8)] = 3
    """Largest number of a mixer's shapes that are trained for a budget, in its order of preference; the best on validation is
    reported."""
    tuned: bool = False
    """Claims that mixers are tuned: refused with fewer than three learning rates."""
    choose: Names = None
    """Axes of which the best value on validation is reported, such as ("optimizer.learning_rate", "optimizer.rule"); None: the
    learning rate, if it is an axis. Shapes are chosen in any case."""
    seeds_of_best: tuple[Seed, ...] = ()
    """Further values of training.seed, trained in a second stage only for the best settings of each label, as the first stage chose
    them on validation. The table then has median and range over all seeds at these settings."""

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

    @field_validator("budget")
    @classmethod
    def _positive_budgets(cls, value):
        budgets = value if isinstance(value, tuple) else () if value is None else (value,)
        if value == () or any(each < 1 for each in budgets) or len(set(budgets)) < len(budgets):
            raise ValueError(f"{value!r}: wanted a positive number, or several different ones")
        return value

    @model_validator(mode="after")
    def _budget_with_a_measure(self):
        if self.match is None and self.budget is not None:
            raise ValueError(f"budget={self.budget!r} without match: wanted match='state_bytes', 'parameters' or 'flops'")
        if self.match is not None and self.budget is None:
            raise ValueError(f"match={self.match!r} without a budget: wanted one, such as budget=4096")
        if self.match is not None and (taken := [axis for axis in (BUDGET, SHAPE, MATCHED) if axis in self.axes]):
            raise ValueError(f"the axis {taken[0]!r} has the name that a comparison with a budget uses; wanted another")
        return self

    @model_validator(mode="after")
    def _axes_of_choice(self):
        for axis in self.choose or ():
            if axis not in self.axes:
                raise ValueError(f"choose: {axis!r} is no axis.{did_you_mean(axis, self.axes)} Axes: {', '.join(self.axes)}")
            if changed := {LAYERS, SEED} & ({axis} | self.named.get(axis, set())):
                what = "the best seed would be luck" if SEED in changed else "mixers are compared"
                raise ValueError(f"choose: {axis!r} changes {', '.join(changed)}: {what}; wanted a setting of the training")
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
        rates = set()
        for _, changed in self.combinations():
            experiment = self.as_written(changed)
            rates.add(experiment.optimizer.learning_rate)
            if (after := experiment.training.stop_after_steps) is not None:
                raise ValueError(f"training.stop_after_steps={after}, but a comparison needs finished runs; wanted None")
        if self.tuned and len(rates) < RATES:
            raise ValueError(
                f"tuned=True with {len(rates)} learning rate{'s' * (len(rates) > 1)}: wanted at least {RATES}, or tuned=False"
            )
        if self.tuned and RATE not in self.chosen:
            raise ValueError(f"tuned=True, but no best learning rate is chosen: wanted {RATE} as an axis, and in choose")
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

    @property
    def measure(self) -> Measure:
        """`match`, of a comparison that has one."""
        if self.match is None:
            raise ValueError("match=None: wanted a comparison with a budget")
        return self.match

    @property
    def budgets(self) -> tuple[int, ...]:
        """All budgets."""
        return self.budget if isinstance(self.budget, tuple) else () if self.budget is None else (self.budget,)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The axes of which the best value on validation is reported."""
        return tuple(axis for axis in (RATE,) if axis in self.axes) if self.choose is None else self.choose

    def combinations(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each combination as ({axis: value or name}, {setting: value}), the last axis varying fastest."""
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            yield point, self.settings_of(point)

    def experiments(self) -> Iterator[tuple[dict[str, Any], Experiment]]:
        """Each combination as ({axis: value or name}, experiment), the last axis varying fastest.

        With a budget, runs that differ only in settings of `optimizer` and `training` are neighbours, and a point also has "budget"
        and "shape", or neither where the layers stay as they are written, and "matched", the measure of the model.
        """
        if self.match is None:
            yield from ((point, replace(self.base, changed)) for point, changed in self.combinations())
            return
        from seqzoo.compare.sizing import sized_layers  # above this package: it builds models

        for point, changed in self.models():
            for more, layers in sized_layers(self, changed):
                for others in itertools.product(*(self.axes[axis] for axis in self.axes if axis not in point)):
                    values = point | dict(zip((axis for axis in self.axes if axis not in point), others, strict=True))
                    ordered = {axis: values[axis] for axis in self.axes}
                    yield ordered | more, replace(self.base, self.settings_of(ordered) | {LAYERS: layers})

    def models(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The combinations of the axes on which a model's size depends: all but those of settings of `optimizer` and `training`."""
        paths = {axis: self.named.get(axis, {axis}) for axis in self.axes}
        axes = [axis for axis in self.axes if any(path.split(".")[0] not in ("optimizer", "training") for path in paths[axis])]
        for values in itertools.product(*(self.axes[axis] for axis in axes)):
            point = dict(zip(axes, values, strict=True))
            yield point, self.settings_of(point)

    def written_layers(self, point: Mapping[str, Any]) -> tuple[str, ...]:
        """The layers of a point as they are written, before settings are solved for."""
        return self.layers_with(self.settings_of(point))

    def settings_of(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that a point changes; it may lack axes."""
        changed = {}
        for axis, value in point.items():
            if (values := self.axes.get(axis)) is not None:
                changed |= values[value] if isinstance(values, dict) else {axis: value}
        return changed

    def as_written(self, changed: Mapping[str, Any]) -> Experiment:
        """The experiment with these settings changed, before any is solved for; those that `...` asks for are at their defaults."""
        written = self.layers_with(changed)
        if self.match is not None:
            return replace(self.base, {**changed, LAYERS: tuple(map(_without_asked, written))})
        if any("..." in str(each) for each in written):
            raise ValueError(f"{', '.join(written)}: '...' asks for a setting that meets a budget; wanted match and budget too")
        return replace(self.base, changed)

    def layers_with(self, changed: Mapping[str, Any]) -> tuple[str, ...]:
        """The layers as they are written, where these settings are changed."""
        value = changed.get(LAYERS, self.base.model.layers)
        return (
            tuple(split(value))
            if isinstance(value, str)
            else tuple(map(as_text, value if isinstance(value, tuple | list) else (value,)))
        )


def _without_asked(text: str) -> str:
    """A spec without the settings that `...` asks to be solved for."""
    spec = parse(str(text))
    return str(Spec(spec.name, tuple((name, value) for name, value in spec.settings if value is not ...)))
