"""A model by its parts, from abstract shapes alone: parameters, decode memory and FLOPs of each layer. Nothing is allocated."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqzoo import config, plugins, tasks
from seqzoo.compare.tables import new_table, print_line, print_table
from seqzoo.model import LanguageModel, params
from seqzoo.specs import SpecError
from seqzoo.training.run.data_record import Sizes


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Shape, dtype and axes of a parameter; a scanned stack has a first axis "layers"."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Layer(NamedTuple):
    """The blocks of one entry in the pattern of layers."""

    spec: str
    places: tuple[int, ...]  # in the stack, from 0
    state_bytes: int  # decode memory of one of them, per row at the task's longest length
    flops: float  # forward model FLOPs of one of them, per token at that length


class Model(NamedTuple):
    """A model by its parts; nothing is allocated."""

    parameters: dict[str, Any]  # {module: {...: Parameter}}
    layers: tuple[Layer, ...]
    state_bytes: int  # of the whole model
    flops: float  # of the whole model
    length: int  # the task's longest


def describe(experiment: config.Experiment, sizes: Sizes | None = None) -> Model:
    """The model of an experiment by its parts; with the sizes that a run recorded, no data is read.

    Raises:
      ValueError: the model cannot be built; the message names the setting.
    """
    from seqzoo.training import build

    task = sizes or tasks.registry.create(experiment.task)
    model = nnx.eval_shape(lambda: build(experiment.model, task, jax.random.key(0)))
    length = task.max_length
    look = lambda path, variable: Parameter(tuple(variable.shape), str(variable.dtype), params.axes(path, variable))
    state = jax.eval_shape(lambda: model.init_state(1, length))
    return Model(
        parameters=params.map_variables(look, params.split(model)[1]),
        layers=tuple(_layers(model, experiment.model.layers, state.stack, length)),
        state_bytes=_bytes(state),
        flops=model.flops(1, length) / length,
        length=length,
    )


def _layers(model: LanguageModel, specs: tuple[str, ...], state, length: int) -> Iterator[Layer]:
    """One for each place of the pattern that is filled. The last round through the pattern may end early."""
    stack = model.stack
    scanned, remainder = stack.repeats * len(specs), {} if stack.remainder is None else stack.remainder.blocks()
    blocks = remainder if stack.scanned is None else stack.scanned.blocks()
    for place, (spec, (name, block)) in enumerate(zip(specs, blocks.items(), strict=False)):
        places = (*range(place, scanned, len(specs)), *([scanned + place] if name in remainder else []))
        state_bytes = _bytes(state.scanned[name]) // stack.repeats if stack.repeats else _bytes(state.remainder[name])
        yield Layer(spec, places, state_bytes, block.flops(1, length) / length)


def _bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def changed(experiment: config.Experiment) -> dict[str, tuple[Any, Any]]:
    """Settings that differ from the defaults: {path: (value, default)}."""
    defaults = config.settings(config.Experiment())
    return {path: (value, defaults[path]) for path, value in config.settings(experiment).items() if value != defaults[path]}


def show(experiment: config.Experiment, console: Console, sizes: Sizes | None = None) -> None:
    """Prints the settings that differ from the defaults, and the model by its parts. `sizes` as in `describe`."""
    table = _table("Settings that differ from the defaults", "", "value", "default")
    for path, values in changed(experiment).items():
        table.add_row(path, *(Text(repr(value)) for value in values))
    print_table(console, table)
    try:
        model = describe(experiment, sizes)
    except SpecError as error:
        if not plugins.skipping():
            raise
        print_line(console, f"The model cannot be shown: {error}. Not imported: {', '.join(experiment.imports) or 'nothing'}")
        return

    table = _table("Parameters", "", "count", "shape", "dtype", "axes", right=("count",))
    for depth, name, count, parameter in _rows(model.parameters):
        cells = () if parameter is None else (str(parameter.shape), parameter.dtype, ", ".join(map(str, parameter.axes)))
        table.add_row(Text("  " * depth + name, "" if parameter else "bold"), f"{count:,}", *map(Text, cells))
    table.add_section()
    table.add_row(Text("all", "bold"), f"{_count(model.parameters):,}")
    print_table(console, table)

    columns = ("state bytes", "FLOPs per token")
    table = _table(f"Layers, at {model.length:,} tokens", "", "places", *columns, right=columns)
    for layer in model.layers:
        table.add_row(Text(layer.spec), _places(layer.places), f"{layer.state_bytes:,}", f"{layer.flops:,.0f}")
    inner = [len(layer.places) * layer.flops for layer in model.layers]
    table.add_row("head", "", "", f"{model.flops - sum(inner):,.0f}")
    table.add_section()
    table.add_row(Text("all", "bold"), "", f"{model.state_bytes:,}", f"{model.flops:,.0f}")
    print_table(console, table)
    print_line(console, "State bytes: decode memory per row. FLOPs: matrix products of the forward pass. Both for one layer.")


def _rows(tree: dict[str, Any], depth: int = 0) -> Iterator[tuple[int, str, int, Parameter | None]]:
    """(nesting, name, count, None) for a module, then its contents; (nesting, name, count, parameter) for a parameter."""
    for name, inside in tree.items():
        if isinstance(inside, Parameter):
            yield depth, name, inside.count, inside
        else:
            yield depth, name, _count(inside), None
            yield from _rows(inside, depth + 1)


def _count(tree: dict[str, Any] | Parameter) -> int:
    return tree.count if isinstance(tree, Parameter) else sum(map(_count, tree.values()))


def _places(places: tuple[int, ...]) -> str:
    """ "0, 2, 4", or "0, 3, ..., 45" for more than four."""
    if len(places) > 4:
        return f"{places[0]}, {places[1]}, ..., {places[-1]}"
    return ", ".join(map(str, places))


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = new_table(title)
    for name in columns:
        number = name in right
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table
