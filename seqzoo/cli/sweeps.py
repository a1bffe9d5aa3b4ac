"""Sweeps: comparisons that the command line makes, `--sweep SETTING=VALUE,VALUE`.

Values are separated by commas outside of quotes and brackets. A value in quotes or brackets is a Python literal, so that it may
hold commas; any other is text if the setting takes text, and else a Python literal too:

    --sweep optimizer.learning_rate=1e-3,3e-3
    --sweep "model.layers=gla,'mamba2, softmax'"               one model of GLA, one hybrid
    --sweep "model.layers=gla,('mamba2', 'softmax')"           the same
    --sweep "mesh.rules={'heads': None},{'heads': 'fsdp'}"
"""

import ast
from collections.abc import Callable
from typing import Any

from seqzoo import config
from seqzoo.cli.shared import UsageError
from seqzoo.config.comparison import LAYERS
from seqzoo.specs import split

SWEEP = "--sweep"


def sweep(loaded: config.Config, chosen: config.Config, sweeps: list[str]) -> config.Comparison:
    """The comparison of every combination of the swept values; a swept setting replaces an axis of the same name.

    Args:
      loaded: the config of the file.
      chosen: the same with the settings of the command line.
      sweeps: "SETTING=VALUE,VALUE" each.
    """
    base, before = (each.base if isinstance(each, config.Comparison) else each for each in (chosen, loaded))
    axes = dict(chosen.axes) if isinstance(chosen, config.Comparison) else {}
    given, seen = config.difference(base, before), set()
    for word in sweeps:
        path, _, values = word.partition("=")
        path = path.strip().replace("-", "_")
        if not values.strip():
            raise UsageError(f"{SWEEP} {word!r}: wanted SETTING=VALUE,VALUE, such as optimizer.learning_rate=1e-3,3e-3")
        if path in given or path in seen:
            raise UsageError(f"{SWEEP} {word!r}, but {path} is given twice; wanted {SWEEP} {path}=... alone, once")
        seen.add(path)
        axes[path] = tuple(_typed(base, path, value) for value in split(values))
    return _with_axes(chosen, axes) if isinstance(chosen, config.Comparison) else config.Comparison(base=base, axes=axes)


def _with_axes(comparison: config.Comparison, axes: dict[str, Any]) -> config.Comparison:
    settings: dict[str, Any] = dict(comparison) | {"axes": axes}
    return config.Comparison(**settings)


def _typed(base: config.Experiment, path: str, word: str) -> Any:
    """The value of a setting from a word of the command line."""
    if path == LAYERS and "..." in word:  # asks for a setting to be solved for, which only a comparison with a budget can do
        return split(word)
    try:
        literal, is_literal = ast.literal_eval(word), True
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal, is_literal = word, False
    as_given = lambda value: config.settings(config.replace(base, {path: value}))[path]
    if is_literal and word[0] in "'\"([{":
        return as_given(literal)
    try:
        return as_given(None if word == "None" else word)
    except config.ConfigError:
        return as_given(literal)


def without_repeats(comparison: config.Comparison, say: Callable[[str], None]) -> config.Comparison:
    """The comparison without values that give the same experiments as earlier ones of their axis; each is reported."""
    axes = dict(comparison.axes)
    first = {axis: next(iter(values)) for axis, values in axes.items()}
    for axis, values in axes.items():
        if isinstance(values, dict):
            continue
        kept: dict[int, Any] = {}
        for number, value in enumerate(values):
            changed = comparison.settings_of(first | {axis: value})
            experiment = comparison.layers_with(changed), comparison.as_written(changed)
            equal = next((earlier for earlier, other in kept.items() if other == experiment), None)
            if equal is None:
                kept[number] = experiment
            else:
                say(f"note: {axis}={value!r} is the same as {values[equal]!r}: one run for both")
        axes[axis] = tuple(values[number] for number in kept)
    return comparison if axes == comparison.axes else _with_axes(comparison, axes)
