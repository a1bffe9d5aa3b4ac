"""Architectures: `model_type` in config.json to settings of `LanguageModel` and a tensor map."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from seqzoo.convert.checkpoint import Config, ConvertError
from seqzoo.convert.tensor_map import Rule
from seqzoo.specs import did_you_mean


class ModelMapping(NamedTuple):
    """Mapping of one checkpoint: how to build the model, and which tensor fills which parameter."""

    model: Mapping[str, Any]  # arguments of LanguageModel; None for a layer whose mixer does not exist here
    tensors: Mapping[str, Rule]  # by name in the file; targets: parameters of the model
    layers: tuple[Mapping[str, Rule], ...]  # for each layer; targets: parameters of its Block
    refused: str | None = None  # reason if only single mixers can be read


_ARCHITECTURES: dict[str, Callable[[Config], ModelMapping]] = {}


def architecture(model_type: str) -> Callable:
    """Decorator: `@architecture("mamba")` on a function from Config to ModelMapping."""

    def enrol(make):
        _ARCHITECTURES[model_type] = make
        return make

    return enrol


def names() -> tuple[str, ...]:
    """The supported model types."""
    return tuple(sorted(_ARCHITECTURES))


def model_mapping(config: Config) -> ModelMapping:
    """The mapping for a config.json; ConvertError for an unsupported model type, setting or value."""
    model_type = config.get("model_type")
    if model_type not in _ARCHITECTURES:
        near = did_you_mean(str(model_type), _ARCHITECTURES)
        raise ConvertError(f"{config.where}: model_type={model_type!r} is not supported, only {', '.join(names())}.{near}")
    made = _ARCHITECTURES[model_type](config)
    config.finish()
    return made


def prefixed(prefix: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules with a prefix before every tensor name."""
    add = lambda name: None if name is None else prefix + name
    renamed = lambda rule: rule._replace(extra_inputs=tuple(map(add, rule.extra_inputs)), alias=add(rule.alias))
    return {prefix + name: renamed(rule) for name, rule in rules.items()}


def rotary(
    config: Config, *, base: float, fraction: float | None = None, without_effect: Sequence[str] = ()
) -> tuple[float, float]:
    """(base, fraction of a head's channels that are rotated) of rotary positions; ConvertError for scaled positions.

    Args:
      base, fraction: defaults of absent settings; fraction None: heads are rotated completely, and a fraction is refused.
      without_effect: settings of rope_parameters without effect on text.
    """
    settings = dict(config.get("rope_parameters", None) or {})
    settings = {key: value for key, value in settings.items() if key not in without_effect}
    base = settings.pop("rope_theta", config.get("rope_theta", base))  # older files have both outside rope_parameters
    if fraction is not None:
        fraction = settings.pop("partial_rotary_factor", config.get("partial_rotary_factor", fraction))
    if settings.pop("rope_type", "default") != "default" or settings:
        known = "rope_theta" if fraction is None else "rope_theta and partial_rotary_factor"
        found = config.get("rope_parameters")
        raise ConvertError(f"{config.where}: rope_parameters={found!r} is not supported, only {known}, with rope_type='default'")
    return float(base), 1.0 if fraction is None else float(fraction)
