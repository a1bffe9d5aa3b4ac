"""Initial parameters taken from another model: `model.init_from`, a run folder or a checkpoint that `seqzoo.convert` reads.

Parameters are matched by name ("stack/scanned/0_gla/mixer/q/w"); two of one name must have the same shape. Of a run, the latest
checkpoint that loads is read: its parameters, or their moving average (training.ema) if the run kept one. Nothing else is read:
optimizer, step and random keys start as in a new run.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util
from jax import Array

from seqzoo import config, convert
from seqzoo.convert.checkpoint import Checkpoint
from seqzoo.data.atomic_io import error_reason
from seqzoo.data.json_files import read_json
from seqzoo.model import LanguageModel, params
from seqzoo.training.run import distributed
from seqzoo.training.run.checkpoint import Checkpoints, damage
from seqzoo.training.state import TrainSetup

Shapes = dict[str, tuple[int, ...]]

# Settings of a model that change neither its parameters nor the function they define.
NO_EFFECT = {"init_from", "pad_vocab", "stack", "remat", "dropout", "embedding_dropout", "dtype", "residual_dtype", "param_dtype"}
SHOWN = 5  # names in one line


class InitFromError(ValueError):
    """`model.init_from` names no model, one of other shapes, or one that does not load. One line: found, wanted, what to change."""


class Source(NamedTuple):
    """A model whose parameters can be taken; none of its arrays is read yet."""

    path: Path
    shapes: Shapes
    settings: dict[str, Any]  # of the section `model`, as JSON has them
    key: str | None = None  # the parameters in a run's state: "params" or "ema"; None: a checkpoint of another project


class Report(NamedTuple):
    """Report of the parameters taken over; `environment.json` keeps it as "init_from"."""

    path: str
    step: int | None  # of the run's checkpoint
    loaded: list[str]
    not_loaded: list[str]  # parameters that only this model has: they keep their random initial values
    unused: list[str]  # parameters that only the other model has
    other_settings: dict[str, tuple[Any, Any]]  # {setting: (there, here)}: settings that change what equal parameters compute

    def lines(self) -> list[str]:
        """The report in words."""
        at = "" if self.step is None else f" at step {self.step}"
        count = len(self.loaded) + len(self.not_loaded)
        lines = [f"initial parameters from {self.path}{at}: {len(self.loaded)} of {count} loaded"]
        lines += [f"not loaded, drawn as without init_from: {_shortened(self.not_loaded)}"] if self.not_loaded else []
        lines += [f"unused there: {_shortened(self.unused)}"] if self.unused else []
        lines += [f"note: model.{name} is {there!r} there, {here!r} here" for name, (there, here) in self.other_settings.items()]
        return lines


def check(setup: TrainSetup) -> None:
    """Raises InitFromError if `model.init_from` names no model, or one whose parameters have other shapes. Reads no array."""
    if setup.experiment.model.init_from is not None:
        _match(setup, _source(setup))


def load(setup: TrainSetup, say: Callable[[str], None]) -> tuple[dict[str, Any], Report]:
    """The parameters of the model that `model.init_from` names, placed as in training: a part of the tree of `params`.

    Raises InitFromError, as `check`, and if no checkpoint of a run loads.
    """
    source = _source(setup)
    report = _match(setup, source)
    like = setup.abstract["params"]
    wanted = {name: leaf for name, leaf in _flat(like).items() if name in report.loaded}
    if source.key is None:
        return _nested(_from_checkpoint(source, wanted), like), report
    nested, step = _from_run(source.path, source.key, _nested(wanted, like), say)
    return nested, report._replace(step=step)


def _source(setup: TrainSetup) -> Source:
    path = setup.experiment.model.init_from
    try:
        opened = distributed.from_main_process(
            lambda: _open(Path(str(path)), setup.experiment.model.pad_vocab)._replace(path=str(path))
        )
    except (ValueError, OSError, ImportError) as error:
        raise InitFromError(f"model.init_from={path!r}: {error}") from error
    name, shapes, settings, key = opened
    return Source(Path(name), {name: tuple(shape) for name, shape in shapes.items()}, settings, key)


def _open(path: Path, pad_vocab: int) -> Source:
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{file} does not exist; wanted a run folder, or a checkpoint folder that seqzoo.convert reads")
    found = read_json(file)
    if "model_type" in found:
        return _open_checkpoint(path, pad_vocab)
    if "axes" in found:
        inside = ", ".join(sorted(str(each.parent) for each in path.glob("*/*/config.json")))
        raise ValueError(f"holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    if not isinstance(found.get("model"), dict):
        raise ValueError(f"{file} is neither that of a run nor that of a checkpoint; wanted one of these folders")
    return _open_run(path, found["model"])


def _open_checkpoint(path: Path, pad_vocab: int) -> Source:
    settings: dict[str, Any] = convert.settings(path) | {"pad_vocab": pad_vocab}
    with Checkpoint(path):  # checks that all its files exist
        model = nnx.eval_shape(lambda: LanguageModel(**settings, rngs=nnx.Rngs(0)))
    shapes = _flat(params.map_variables(lambda _, variable: tuple(variable.shape), params.split(model)[1]))
    del settings["vocab_size"]  # the task sets it
    return Source(path, shapes, json.loads(config.Model(**settings).model_dump_json()))


def _open_run(path: Path, settings: dict[str, Any]) -> Source:
    checkpoints = Checkpoints(path / "checkpoints")
    problem = "has no checkpoint"
    for step in reversed(checkpoints.steps()):
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                held: Any = checkpointer.metadata(checkpoints.folder / str(step)).item_metadata.tree
            key = "ema" if "ema" in held else "params"
            shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), held[key], is_leaf=lambda leaf: hasattr(leaf, "shape"))
            return Source(path, _flat(shapes), settings, key)
        except Exception as error:  # Orbax raises many types of error; each means that this checkpoint cannot be read
            problem = f"checkpoint {step} does not load: {damage(checkpoints.folder / str(step)) or error_reason(error)}"
    raise ValueError(f"{problem}; wanted a run with a complete checkpoint")


def _match(setup: TrainSetup, source: Source) -> Report:
    """The parameters of one name in both models; raises InitFromError if there is none, or if two have other shapes."""
    here = {name: tuple(leaf.shape) for name, leaf in _flat(setup.abstract["params"]).items()}
    path = str(setup.experiment.model.init_from)
    common = [name for name in here if name in source.shapes]
    differing = [
        f"parameter {name} has shape {source.shapes[name]} there, wanted {here[name]}"
        for name in common
        if source.shapes[name] != here[name]
    ]
    if differing or not common:
        names = f"has no parameter of the same name, but {_shortened(source.shapes)}; here are {_shortened(here)}"
        raise InitFromError(
            f"model.init_from={path!r}: {_shortened(differing, '; ') if differing else names}; wanted the settings of that model "
            f"in the section model, and its vocabulary in the task"
        )
    settings = json.loads(setup.experiment.model.model_dump_json())
    other = {
        name: (there, settings[name])
        for name, there in source.settings.items()
        if name in settings and name not in NO_EFFECT and there != settings[name]
    }
    not_loaded, unused = sorted(here.keys() - source.shapes.keys()), sorted(source.shapes.keys() - here.keys())
    return Report(path, None, common, not_loaded, unused, other)


def _from_run(path: Path, key: str, wanted: dict[str, Any], say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """The wanted parameters in the latest checkpoint of a run that loads, and its step."""
    checkpoints = Checkpoints(path / "checkpoints")
    item = {key: wanted}
    arguments = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    problems = []
    for step in reversed(distributed.from_main_process(checkpoints.steps)):
        held = checkpoints.folder / str(step)
        problem = distributed.from_main_process(lambda held=held: damage(held))
        if problem is None:
            try:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    return checkpointer.restore(held, args=arguments)[key], step
            except Exception as error:  # as in Checkpoints.restore: is there an older one?
                problem = error_reason(error)
        problems.append(f"step {step}: {problem}")
        say(f"checkpoint {held} does not load: {problem}")
    raise InitFromError(f"model.init_from={str(path)!r}: no checkpoint there loads ({'; '.join(problems)})")


def _from_checkpoint(source: Source, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """The parameters of a checkpoint of another project, with zeros in the rows that pad its vocabulary here."""
    model = convert.load(source.path)
    held = _flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))

    def placed(name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        host = np.asarray(held.pop(name)).astype(leaf.dtype)
        host = np.pad(host, [(0, wanted - size) for size, wanted in zip(host.shape, leaf.shape, strict=True)])
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])

    return {name: placed(name, leaf) for name, leaf in wanted.items()}


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves by name, "stack/scanned/0_gla/mixer/q/w" say."""
    return {"/".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


def _nested(flat: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Leaves by name as a part of a tree."""
    paths = {"/".join(map(str, path)): path for path in traverse_util.flatten_dict(like)}
    return traverse_util.unflatten_dict({paths[name]: leaf for name, leaf in flat.items()})


def _shortened(items: Iterable[str], separator: str = ", ") -> str:
    items = list(items)
    return separator.join(items[:SHOWN]) + (f"{separator}and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
