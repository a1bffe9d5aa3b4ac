"""Experiments: one model on one task, and its settings by dotted path."""

from collections.abc import Mapping
from typing import Any

from pydantic import field_validator, model_validator

from seqzoo import channels, mixers, plugins, tasks
from seqzoo.config.base import ConfigError, Modules, Section
from seqzoo.config.mesh import Mesh
from seqzoo.config.model import Model
from seqzoo.config.names import shortened
from seqzoo.config.optimizer import Optimizer
from seqzoo.config.run import Run
from seqzoo.config.training import Training
from seqzoo.specs import did_you_mean, parse, split
from seqzoo.training.optim import schedules, update_rules


class Experiment(Section):
    """One model trained on one task."""

    imports: Modules = ()
    """Modules that register mixers, channel mixers, tasks and optimizers of your own, separated by commas. They are imported before
    specs are checked; a run folder remembers their names, never their code."""
    model: Model = Model()
    """The network."""
    task: str = "mqar"
    """Task with settings: "mqar(vocab_size=256, length=64)"."""
    optimizer: Optimizer = Optimizer()
    """Update rule, learning rate and gradient processing."""
    training: Training = Training()
    """Number of steps, evaluations and checkpoints."""
    mesh: Mesh = Mesh()
    """Parallelism over devices."""
    run: Run = Run()
    """Run folder and logging."""

    @field_validator("imports", mode="before")
    @classmethod
    def _split_modules(cls, value):
        return split(value) if isinstance(value, str) else value

    @field_validator("imports")  # the first field, so that the specs of all others are checked after it
    @classmethod
    def _import_modules(cls, value):
        plugins.import_modules(value)
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value):
        spec = parse(value) if isinstance(value, str) else value
        if not plugins.skipping() or spec.name in tasks.registry.names():
            tasks.registry.create(spec)  # checks the task's own conditions too
        return str(spec)

    @model_validator(mode="after")
    def _known_specs(self):
        specs = {
            "model.layers": (mixers.registry, self.model.layers),
            "model.channel": (channels.registry, [self.model.channel]),
            "optimizer.rule": (update_rules.registry, [self.optimizer.rule]),
            "optimizer.schedule": (schedules.registry, [self.optimizer.schedule]),
        }
        for setting, (registry, values) in specs.items() if not plugins.skipping() else ():
            for value in values:
                try:
                    registry.check(value)
                except ValueError as error:
                    raise ValueError(f"{setting}: {error}") from None
        return self

    @property
    def name(self) -> str:
        """`run.name`, or a name made from task and mixers."""
        layers = "-".join(dict.fromkeys(parse(spec).name for spec in self.model.layers))
        return self.run.name or shortened(f"{parse(self.task).name}-{layers}")


def settings(section: Section, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted path: {"model.depth": 2, ...}."""
    flat = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        flat |= settings(value, f"{prefix}{name}.") if isinstance(value, Section) else {f"{prefix}{name}": value}
    return flat


def replace(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """A copy with the settings at these dotted paths replaced; everything is checked again."""
    tree = experiment.model_dump()
    known = settings(experiment)
    for path, value in values.items():
        if path not in known:
            last = {full.split(".")[-1]: full for full in known}.get(path.split(".")[-1], path)
            near = did_you_mean(last, known)
            raise ConfigError(f"no setting is called {path!r}.{near} Settings: {', '.join(known)}")
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    return Experiment(**tree)


def difference(one: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """The settings in which two experiments differ, without the section `run`: {path: (value of one, value of other)}."""
    a, b = settings(one), settings(other)
    return {path: (a[path], b[path]) for path in a if a[path] != b[path] and not path.startswith("run.")}
