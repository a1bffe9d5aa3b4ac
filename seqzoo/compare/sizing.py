"""Equal budgets: solves for settings of mixers with which a model has given recurrent memory, parameters or FLOPs.

A mixer declares its usual shapes (`seqzoo.mixers.shapes`): settings that are fixed, and settings that grow with one width. The
search over that width evaluates abstract shapes only, of single layers, and remembers them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from seqzoo import config, mixers, tasks
from seqzoo.compare.names import short_names
from seqzoo.config.comparison import BUDGET, LAYERS, MATCHED, SHAPE
from seqzoo.mixers import memory_bytes, state_bytes
from seqzoo.mixers.shapes import Measure, Shape
from seqzoo.model import LanguageModel, params
from seqzoo.specs import Spec, parse

TOLERANCE = 0.05  # of a budget
WIDEST = 16  # channels, states, slots ... over d_model of any setting that is solved for; no published layer has more
FILLER = "base_conv"  # in place of all mixers, where only the rest of a model is counted
SHORT = {"state_bytes": "memory", "parameters": "parameters", "flops": "FLOPs"}
WORDS = {"state_bytes": "bytes of recurrent memory", "parameters": "parameters", "flops": "FLOPs per row"}


class Cost(NamedTuple):
    """Cost of a layer or of a model, on one row of the task's longest length."""

    parameters: int
    memory_bytes: int  # of the mixers, see `seqzoo.mixers.memory_bytes`
    state_bytes: int  # really carried while decoding
    flops: int  # of a forward pass

    def of(self, measure: Measure) -> int:
        """The number that a budget of this measure limits."""
        return self.memory_bytes if measure == "state_bytes" else getattr(self, measure)

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """This cost and `times` another."""
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Candidate(NamedTuple):
    """Layers whose settings give a model its budget."""

    layers: tuple[str, ...]
    shape: str  # the layers that were sized, with all their settings
    cost: Cost  # of the model


class Sizing(NamedTuple):
    """Result for one pattern of layers and one budget."""

    candidates: tuple[Candidate, ...]  # in the order of preference; none: the pattern is left out
    matched: bool  # whether the candidates have the budget
    reason: str  # why they have not, or why there are none; else ""


def sized_layers(comparison: config.Comparison, changed: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The layers of a model of a comparison, for each budget and shape, as (what a point says of them, layers).

    A pattern that stays as it is comes once for all budgets. A pattern without settings for any budget does not come at all.

    Args:
      changed: the settings in which the model differs from the base.
    """
    sizings = list(_sizings(comparison, changed))
    matched = [(budget, each) for budget, sizing in sizings if sizing.matched for each in sizing.candidates]
    for budget, each in matched:
        yield {BUDGET: budget, SHAPE: each.shape, MATCHED: each.cost.of(comparison.measure)}, each.layers
    if not matched:
        for each in sizings[0][1].candidates:
            yield {MATCHED: each.cost.of(comparison.measure)}, each.layers


class NotMatched(NamedTuple):
    """A pattern of layers that has no settings for a budget, or that stays as it is."""

    layers: tuple[str, ...]  # as written
    budget: int | None  # None: any
    reason: str
    left_out: bool  # else it is trained as it is


def not_matched(comparison: config.Comparison) -> list[NotMatched]:
    """The patterns without a budget, in the order of the models.

    Raises:
      ValueError: a budget that no mixer can meet.
    """
    if comparison.match is None:
        return []
    found, met = [], set()
    for _, changed in comparison.models():
        for budget, sizing in _sizings(comparison, changed):
            if sizing.matched:
                met.add(budget)
            else:
                layers = comparison.layers_with(changed)
                found.append(NotMatched(layers, None if sizing.candidates else budget, sizing.reason, not sizing.candidates))
    for budget in comparison.budgets:
        if budget not in met:
            reasons = dict.fromkeys(each.reason for each in found if each.budget in (budget, None))
            why = "; ".join(itertools.islice(reasons, 3))
            raise ValueError(f"no mixer can be given the budget of {budget:,} {WORDS[comparison.measure]}: {why}")
    return list(dict.fromkeys(found))


def explain(comparison: config.Comparison, unmatched: Sequence[NotMatched]) -> list[str]:
    """Lines of text: the measure that is matched, and every pattern of layers without a budget, with the reason."""
    if comparison.match is None:
        return []
    budgets = " or ".join(f"{budget:,}" for budget in comparison.budgets)
    lines = [f"Matched within 5 %: {budgets} {WORDS[comparison.measure]}."]
    names = short_names([", ".join(layers) for _, changed in comparison.models() if (layers := comparison.layers_with(changed))])
    groups: dict[tuple[str, bool, str], list[int]] = {}
    for each in unmatched:
        budgets_of = groups.setdefault((names[", ".join(each.layers)], each.left_out, each.reason), [])
        budgets_of += [] if each.budget is None else [each.budget]
    for (name, left_out, reason), numbers in groups.items():
        where = f" at {' and '.join(f'{number:,}' for number in numbers)}" if numbers else ""
        lines.append(f"{'Left out' if left_out else 'Not matched'}: {name}{where}: {reason}.")
    return lines


def _sizings(comparison: config.Comparison, changed: Mapping[str, Any]) -> Iterator[tuple[int, Sizing]]:
    """The result of one model of a comparison for every budget."""
    settings = {path: value for path, value in changed.items() if path != LAYERS}
    experiment = config.replace(comparison.base, settings | {LAYERS: (FILLER,) * len(comparison.layers_with(changed))})
    task = tasks.registry.create(experiment.task)
    for budget in comparison.budgets:
        args = (comparison.layers_with(changed), task.vocab_size, task.max_length, comparison.measure, budget, comparison.shapes)
        yield budget, size(experiment.model, *args)


def within(number: int, budget: int) -> bool:
    """Tells if a number equals a budget within 5 %."""
    return abs(number - budget) <= TOLERANCE * budget


def model_cost(model: config.Model, layers: Sequence[str], vocab_size: int, length: int) -> Cost:
    """Cost of a model with these layers, on a row of `length` tokens; ValueError if a layer cannot be built."""
    cost = _cost_without_mixers(model, len(layers), vocab_size, length)
    return functools.reduce(Cost.plus, (layer_cost(model, spec, length) for spec in _over_depth(layers, model.depth)), cost)


def layer_cost(model: config.Model, spec: str | Spec, length: int) -> Cost:
    """Cost of one mixer of a model; ValueError if it cannot be built."""
    return _layer_cost(str(spec), model.d_model, model.depth, _layer_dtype(model), model.param_dtype, length)


@functools.lru_cache(maxsize=100_000)
def _layer_cost(spec: str, d_model: int, depth: int, dtype: str | None, param_dtype: str, length: int) -> Cost:
    state, found = {"max_length": length, "dtype": dtype or param_dtype}, []

    def build() -> None:
        mixer = mixers.create(spec, d_model, depth=(0, depth), dtype=dtype, param_dtype=param_dtype, rngs=_OneKey())
        count = params.count(nnx.state(mixer))
        found.append(Cost(count, memory_bytes(mixer, **state), state_bytes(mixer, **state), mixer.flops(1, length)))

    jax.eval_shape(build)
    return found[0]


class _OneKey(nnx.Rngs):
    """Random numbers of which only the shapes are wanted: one key for all, which halves the time to build a layer."""

    def __init__(self):
        pass

    def params(self) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return jax.random.key(0)


def _cost_without_mixers(model: config.Model, pattern: int, vocab_size: int, length: int) -> Cost:
    """Cost of a model without its mixers, of which `pattern` are cycled over depth."""
    alone: Any = model.model_copy(update={"layers": (FILLER,) * pattern})
    filler = layer_cost(model, FILLER, length)
    return _cost_with_filler(alone, vocab_size, length).plus(filler, -model.depth)


@functools.lru_cache(maxsize=1000)
def _cost_with_filler(model: config.Model, vocab_size: int, length: int) -> Cost:
    settings = model.model_dump(exclude={"init_from"})
    built = nnx.eval_shape(lambda: LanguageModel(vocab_size, **settings, rngs=nnx.Rngs(0)))
    memory = model.depth * layer_cost(model, FILLER, length).memory_bytes  # that of the mixers alone
    return Cost(params.count(nnx.state(built)), memory, state_bytes(built, length), built.flops(1, length))


def _layer_dtype(model: config.Model) -> str | None:
    return model.param_dtype if model.dtype is None and model.residual_dtype is not None else model.dtype


def _over_depth(layers: Sequence[Any], depth: int) -> Iterator[Any]:
    """The layer of each block."""
    return itertools.islice(itertools.cycle(layers), depth)


def size(
    model: config.Model, layers: tuple[str, ...], vocab_size: int, length: int, measure: Measure, budget: int, most: int
) -> Sizing:
    """Settings of `layers` with which a model meets a budget within 5 %.

    A layer is sized where it leaves free what one of its mixer's shapes solves for, or asks for it by `...`, as in
    "softmax(window=...)". Settings that are given stay, and shapes that contradict them do not count. Equal layers get equal
    settings, and all sized layers equal shares of the budget. A pattern without a layer to size is kept as it is, not matched,
    if its mixers' settings are given or its state grows with the row; else it is left out.

    Args:
      model: the other settings of the model.
      layers: the pattern of layers as it is written.
      vocab_size, length: of the task.
      measure, budget: "state_bytes" counts the memory of the mixers, the others the whole model.
      most: number of candidates that are kept.
    Raises:
      ValueError: a layer that cannot be built.
    """
    hashable: Any = model
    return _size(hashable, layers, vocab_size, length, measure, budget, most)


@functools.lru_cache(maxsize=10_000)
def _size(
    model: config.Model, layers: tuple[str, ...], vocab_size: int, length: int, measure: Measure, budget: int, most: int
) -> Sizing:
    specs = tuple(map(parse, layers))
    free = {spec: shapes for spec in dict.fromkeys(specs) if (shapes := free_shapes(spec, measure))}
    if not free:
        return _unsized(model, layers, vocab_size, length, measure, budget)
    used = list(_over_depth(specs, model.depth))
    rest = _cost_without_mixers(model, len(layers), vocab_size, length)
    rest = functools.reduce(Cost.plus, (layer_cost(model, spec, length) for spec in used if spec not in free), rest)
    count = sum(spec in free for spec in used)
    share = (budget - rest.of(measure)) / max(count, 1)
    if share <= 0:
        return Sizing((), False, f"the rest of the model has {rest.of(measure):,} {WORDS[measure]} already")
    solved, nearest = {}, []
    for spec, shapes in free.items():
        solved[spec], near = _solve(model, spec, shapes, length, measure, share, most)
        nearest.append(near)
    if not all(solved.values()):
        return Sizing((), False, "; ".join(filter(None, nearest)))
    found = []
    for number in range(max(map(len, solved.values()))):
        chosen = {spec: each[min(number, len(each) - 1)] for spec, each in solved.items()}
        written = tuple(str(chosen.get(spec, spec)) for spec in specs)
        cost = functools.reduce(Cost.plus, (layer_cost(model, chosen[spec], length) for spec in used if spec in free), rest)
        found.append(Candidate(written, ", ".join(map(str, chosen.values())), cost))
    return Sizing(tuple(found), True, "")


def _unsized(model: config.Model, layers: tuple[str, ...], vocab_size: int, length: int, measure: Measure, budget: int) -> Sizing:
    """Result for a pattern in which no layer is to be sized: as it is, or left out."""
    cost = model_cost(model, layers, vocab_size, length)
    number = f"{cost.of(measure):,} {WORDS[measure]}"
    counted = [spec for spec in map(parse, layers) if layer_cost(model, spec, length).memory_bytes]
    grows = measure == "state_bytes" and cost.memory_bytes < model_cost(model, layers, vocab_size, 2 * length).memory_bytes
    if grows or (counted and all(spec.settings for spec in counted)):
        matched = within(cost.of(measure), budget) and not grows
        reason = f"its state grows with the row, here to {number}" if grows else f"its settings are given, with {number}"
        return Sizing((Candidate(layers, "", cost),), matched, "" if matched else reason)
    names = ", ".join(dict.fromkeys(spec.name for spec in counted or map(parse, layers)))
    return Sizing((), False, f"{names} declares no shape for a budget of {SHORT[measure]}; it has {number}")


def free_shapes(spec: Spec, measure: Measure) -> tuple[Shape, ...]:
    """The shapes of a spec's mixer that its settings leave to be solved; one of the settings that it asks for by `...`."""
    mixer, given = mixers.registry.get(spec.name), dict(spec.settings)
    asked = [name for name, value in given.items() if value is ...]
    if asked:
        heads = given.get("heads", getattr(mixer, "heads", 1))
        return (Shape({}, {name: heads if _is_expansion(mixer, name) else 1 for name in asked}),)
    agrees = lambda shape: all(given.get(name, value) == value for name, value in shape.fixed.items())
    is_free = lambda shape: bool((shape.grown.keys() or shape.fixed.keys()) - given.keys())
    without_given = lambda shape: shape._replace(grown={name: n for name, n in shape.grown.items() if name not in given})
    shapes = (shape for shape in mixer.shapes if measure in shape.measures)
    return tuple(without_given(shape) for shape in shapes if agrees(shape) and is_free(shape))


def _is_expansion(mixer: Any, name: str) -> bool:
    """Tells if a setting is a multiple of d_model; else it is a number of channels, states, slots ..."""
    fields = mixer.Settings.model_fields
    if name not in fields:
        mixers.registry.check(Spec(mixer.registered_name, ((name, ...),)))  # raises SpecError, with the nearest name
    return fields[name].annotation is float


def _solve(
    model: config.Model, spec: Spec, shapes: Sequence[Shape], length: int, measure: Measure, target: float, most: int
) -> tuple[list[Spec], str]:
    """The first `most` shapes of a spec that come within 5 % of a target per layer, and a line on the nearest of the others."""
    found: list[Spec] = []
    nearest: tuple[float, str] = (math.inf, "")
    for shape in shapes:
        try:
            sized, number = _fit(model, spec, shape, length, measure, target)
        except ValueError as error:  # such as heads that do not divide d_model
            nearest = min(nearest, (math.inf, str(error)))
            continue
        if within(number, round(target)) and sized not in found:
            found.append(sized)
        else:
            off = abs(math.log(max(number, 1) / target))
            nearest = min(nearest, (off, f"{sized} is nearest, with {number:,} of {target:,.0f} {WORDS[measure]}"))
        if len(found) == most:
            break
    return found, "" if found else nearest[1]


def _fit(model: config.Model, spec: Spec, shape: Shape, length: int, measure: Measure, target: float) -> tuple[Spec, int]:
    """The spec with the settings of a shape whose measure is nearest to a target, and that measure."""
    mixer, given = mixers.registry.get(spec.name), {name: value for name, value in spec.settings if value is not ...}

    def at(width: int) -> Spec:
        grown = {name: _value(mixer, name, n * width, model.d_model) for name, n in shape.grown.items()}
        return Spec(spec.name, tuple({**given, **shape.fixed, **grown}.items()))

    cost = lambda width: layer_cost(model, at(width), length).of(measure)
    width = nearest_width(cost, target, max(WIDEST * model.d_model // max(shape.grown.values(), default=16), 1))
    return at(width), cost(width)


def _value(mixer: Any, name: str, channels: int, d_model: int) -> int | float:
    """The value of a setting that stands for so many channels; multiples of d_model with the fewest digits that give them."""
    if not _is_expansion(mixer, name):
        return channels
    exact = channels / d_model
    return next((short for digits in range(1, 9) if round((short := round(exact, digits)) * d_model) == channels), exact)


def nearest_width(measure: Callable[[int], int], target: float, most: int) -> int:
    """The width from 1 to `most` whose measure, which grows with it, is nearest to a target by ratio.

    A search by secants in logarithms: measures are about powers of the width, so a few evaluations are enough.
    """
    known: dict[int, int] = {}
    low, high = 0, most + 1  # measures are below the target at `low`, and not at `high`, as far as is known
    width = min(16, most)
    while low < width < high:
        known[width] = measure(width)
        if known[width] < target:
            low = width
        else:
            high = width
        ideal = _ideal_width(known, width, target)
        if abs(ideal - width) < 0.5:
            break
        width = min(max(round(ideal), low + 1), high - 1)
    return min(known, key=lambda width: abs(math.log(max(known[width], 1) / target)))


def _ideal_width(known: dict[int, int], width: int, target: float) -> float:
    """The width at which the power law through the two known widths nearest to the target would meet it."""
    logs = {w: math.log(max(value, 1)) for w, value in known.items()}
    others = sorted((w for w in logs if w != width), key=lambda w: abs(logs[w] - math.log(target)))
    power = 2.0
    if others and logs[others[0]] != logs[width]:
        power = (logs[width] - logs[others[0]]) / (math.log(width) - math.log(others[0]))
    return width * math.exp((math.log(target) - logs[width]) / max(power, 0.1))
