"""The typed experiment: what to train, on what, how and where. Every setting is checked before anything is written.

A config file is Python that defines `config`, an `Experiment` or a `Comparison`; the command line overrides any field of it:
`--model.layers "gla(heads=2)"`. Both round-trip through JSON.
"""

import itertools
import json
import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, field_validator, model_validator

from seqzoo import channels, mixers, sharding, tasks
from seqzoo.backbone import REMAT, STACKS
from seqzoo.blocks import NORMS
from seqzoo.fields import Axes, ConfigError, Layers, Rules, Section, tuples
from seqzoo.registry import did_you_mean, split

DType = Literal["float32", "bfloat16", "float16"]


class Model(Section):
    """The network: an embedding, a stack of blocks and a head. Its vocabulary comes from the task."""

    layers: Layers = ("softmax",)
    """Mixers, cycled over depth, separated by commas: "mamba2, softmax(window=256, heads=2)"."""
    depth: int = Field(2, ge=1)
    """Number of blocks."""
    d_model: int = Field(64, ge=1)
    """Width of the residual stream."""
    channel: str = "swiglu"
    """Channel mixer of every block: "swiglu", "geglu", "gelu", "rwkv" or "none", with settings as in "gelu(expansion=4)"."""
    norm: Literal[tuple(NORMS)] = "rms"
    """Normalisation before each half of a block, and before the head."""
    tied: bool = True
    """Whether the head is the embedding, transposed."""
    learned_positions: int | None = Field(None, ge=1)
    """How many positions get a learned embedding; None: no learned positions."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate on each branch, and on the embedding unless that has its own."""
    embedding_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout rate on the embedding; None: as `dropout`."""
    stack: Literal[STACKS] = "scan"
    """Run the layers by lax.scan (compile time independent of depth) or by a loop; the numbers are the same."""
    remat: Literal[tuple(REMAT)] = "none"
    """What the backward pass recomputes instead of keeping: nothing, all of a block, or all but its matrix products."""
    dtype: DType | None = None
    """Of the computation; None: that of the parameters. Recurrent states are float32 or better in any case."""
    param_dtype: DType = "float32"
    """Of the parameters, and so of the optimizer's moments."""

    @field_validator("layers", mode="before")
    @classmethod
    def _one_or_many(cls, value):
        return split(value) if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _known_mixers(cls, value):
        if not value:
            raise ValueError("no mixer is named; wanted at least one, such as 'softmax'")
        return tuple(str(mixers.registry.check(spec)) for spec in value)

    @field_validator("channel")
    @classmethod
    def _known_channel(cls, value):
        return str(channels.registry.check(value))


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


class Training(Section):
    """How long, and how often to look, to say and to save."""

    steps: int = Field(1000, ge=1)
    """Optimizer steps in all."""
    seed: int = 0
    """Of the initial parameters and of dropout. The data have their own seed, in the task."""
    accumulate: int = Field(1, ge=1)
    """Into how many micro-batches a batch is cut, one after the other: memory of one, the gradient of the whole batch."""
    loss_chunk: int | None = Field(None, ge=1)
    """Tokens of a row whose logits are there at once; None: all. Fewer need less memory, and the head's product once more."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the mean of log(Z)^2, Z the softmax's denominator, beside the cross-entropy."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running mean of the parameters, which is what is then evaluated and loaded; None: none is kept."""
    eval_every: int = Field(250, ge=1)
    """Steps between evaluations; there is one at the end as well."""
    stop_above: float | None = Field(None, ge=0, lt=1)
    """End as soon as an evaluation's accuracy, averaged over slices, is above this; None: never. The schedule stays that of all
    steps."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; there is one at the end as well."""
    checkpoint_minutes: float | None = Field(None, gt=0)
    """Minutes after which there is a checkpoint even if checkpoint_every steps are not over; None: steps alone decide."""
    keep: int = Field(2, ge=1)
    """How many of the latest checkpoints to keep."""
    keep_best: bool = False
    """Whether the checkpoint of the best evaluation stays as well: highest mean accuracy, or of text fewest bits per byte."""
    log_every: int = Field(25, ge=1)
    """Steps between training lines in metrics.jsonl and, where the output is no terminal, on the console."""


# What a run may change on its way without changing a number of it.
WEIGHTLESS = {f"training.{name}" for name in ("checkpoint_every", "checkpoint_minutes", "keep", "keep_best", "log_every")}


class Mesh(Section):
    """How many devices lie along each mesh axis; one size may be -1: all that are left."""

    replica: int = 1
    """Copies of the parameters; the batch is split over them."""
    fsdp: int = -1
    """The batch and the parameters' "embed" axis are split over these."""
    seq: int = 1
    """Time is split over these: every device holds a piece of each row, and states travel."""
    tensor: int = 1
    """Heads, channels and vocabulary are split over these, and the parameters that make them."""
    rules: Rules = Field(default=dict(sharding.RULES), validate_default=True)
    """Which mesh axis each parameter axis is split over; None: not split. What is left out stays as by default."""

    @field_validator("rules")
    @classmethod
    def _known_axes(cls, value):
        for name, axis in value.items():
            if name not in sharding.RULES:
                known = tuple(sharding.RULES)
                raise ValueError(f"no parameter axis is called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
            if axis is not None and axis not in sharding.AXES:
                near = did_you_mean(axis, sharding.AXES)
                raise ValueError(f"{name} is on {axis!r}, wanted None or one of {', '.join(sharding.AXES)}.{near}")
        return {**sharding.RULES, **value}

    @model_validator(mode="after")
    def _sizes(self):
        sizes = self.sizes()
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"sizes are {sizes}; wanted at least 1 each, and at most one -1 (all devices that are left)")
        return self

    def sizes(self) -> dict[str, int]:
        """The size along each mesh axis, in the mesh's order."""
        return {axis: getattr(self, axis) for axis in sharding.AXES}


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


class Generation(Section):
    """How a trained model goes on from a prompt."""

    prompt: str = ""
    """Text to go on from; it begins a document. Empty: so does the answer. Where the task has no text, token ids: "1 2 3"."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of the answer, unless the document ends before."""
    temperature: float = Field(1.0, ge=0)
    """What logits are divided by before a token is drawn; 0 draws nothing, and takes the most probable one."""
    top_k: int | None = Field(None, ge=1)
    """Draw from this many most probable tokens; None: from all."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw from the fewest most probable tokens whose probabilities add up to this; None: from all."""
    seed: int | None = None
    """Of the draws; None: 0."""
    prefill_chunk: int = Field(512, ge=1)
    """Tokens of the prompt read at a time; fewer need less memory."""
    block: int = Field(4, ge=1)
    """Tokens of the answer between two looks; more are faster, and come in bursts."""

    @model_validator(mode="after")
    def _nothing_to_draw(self):
        if self.temperature == 0 and (given := [name for name in ("top_k", "top_p", "seed") if getattr(self, name) is not None]):
            raise ValueError(f"temperature is 0, which takes the most probable token: wanted no {', '.join(given)}, or more than 0")
        return self


class Experiment(Section):
    """One model trained on one task."""

    model: Model = Model()
    """The network."""
    task: str = "mqar"
    """Where batches come from: a task with settings, "mqar(vocab_size=256, length=64)"."""
    optimizer: Optimizer = Optimizer()
    """How parameters change."""
    training: Training = Training()
    """How long, and how often to look."""
    mesh: Mesh = Mesh()
    """Which devices do what."""
    run: Run = Run()
    """Where the run is kept."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, value):
        tasks.registry.create(value)  # the task's own conditions, not only its names
        return str(tasks.registry.check(value))

    @property
    def name(self) -> str:
        """The run's name: `run.name`, or one made from task and mixers."""
        layers = "-".join(dict.fromkeys(mixers.registry.check(spec).name for spec in self.model.layers))
        return self.run.name or f"{tasks.registry.check(self.task).name}-{layers}"


class Comparison(Section):
    """One experiment for every combination of values on named axes."""

    # The empty name puts the base's settings at the top of the command line, where an Experiment has them.
    base: Annotated[Experiment, tyro.conf.arg(name="")] = Experiment()
    """What all of them share."""
    axes: Axes
    """Settings and their values: {"model.layers": ("gla", "softmax"), "optimizer.learning_rate": (1e-3, 3e-3)}. Settings that
    change together make an axis of names: {"size": {"small": {"model.depth": 2, "model.d_model": 64}, "large": {...}}}; where two
    such axes set the same, the later one counts."""

    @field_validator("axes", mode="before")
    @classmethod
    def _named_axes_with_values(cls, value):
        for path, values in value.items() if isinstance(value, Mapping) else ():
            if isinstance(values, Mapping):
                if not values or not all(isinstance(each, Mapping) and each for each in values.values()):
                    raise ValueError(f"{path!r} has {values!r}, wanted {{name: {{setting: value}}}} with at least one of each")
            elif isinstance(values, str) or not isinstance(values, tuple | list) or not values:
                raise ValueError(f"{path!r} has {values!r}, wanted a tuple of at least one value")
        return tuples(value)

    @model_validator(mode="after")
    def _no_axis_hides_another(self):
        for path in self.axes:
            if path not in self.named and (others := [name for name, paths in self.named.items() if path in paths]):
                raise ValueError(f"{path} is an axis, and {', '.join(map(repr, others))} sets it too; wanted one of them")
        return self

    @model_validator(mode="after")
    def _every_experiment_is_valid(self):
        for _ in self.experiments():
            pass
        return self

    @property
    def name(self) -> str:
        """The comparison's name: `base.run.name`, or one made from the task."""
        return self.base.run.name or f"{tasks.registry.check(self.base.task).name}-comparison"

    @property
    def named(self) -> dict[str, set[str]]:
        """The axes of names, each with the settings that any of its names sets."""
        return {axis: set().union(*values.values()) for axis, values in self.axes.items() if isinstance(values, Mapping)}

    @property
    def varied(self) -> set[str]:
        """Every setting that an axis sets."""
        return set().union(*self.named.values(), self.axes.keys() - self.named.keys())

    def experiments(self) -> Iterator[tuple[dict[str, Any], Experiment]]:
        """Each combination as ({axis: value or name}, experiment), the last axis varying fastest."""
        for values in itertools.product(*self.axes.values()):
            point = dict(zip(self.axes, values, strict=True))
            changed = {}
            for axis, value in point.items():
                changed |= self.axes[axis][value] if axis in self.named else {axis: value}
            yield point, replace(self.base, changed)


Config = Experiment | Comparison


def settings(section: Section, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted path: {"model.depth": 2, ...}."""
    flat = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        flat |= settings(value, f"{prefix}{name}.") if isinstance(value, Section) else {f"{prefix}{name}": value}
    return flat


def replace(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """A copy with the settings at some dotted paths replaced, and everything checked again."""
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
    """The settings in which two experiments differ, those of where the run is kept left out: {path: (one's, other's)}."""
    a, b = settings(one), settings(other)
    return {path: (a[path], b[path]) for path in a if a[path] != b[path] and not path.startswith("run.")}


def load_json(path: Path) -> Config:
    """Reads a config.json."""
    data = json.loads(Path(path).read_text())
    return (Comparison if "axes" in data else Experiment)(**data)


def load_file(path: str | Path) -> Config:
    """The `config` that a Python file defines."""
    path = Path(path)
    if not path.is_file():
        beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"there is no config file {path}.{did_you_mean(str(path), beside)}")
    config = runpy.run_path(str(path)).get("config")
    if not isinstance(config, Experiment | Comparison):
        raise ConfigError(f"{path} defines config={config!r}; wanted config = Experiment(...) or config = Comparison(...)")
    return config
