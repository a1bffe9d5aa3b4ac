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
    skipped: tuple[str, ...] = ()  # prefixes of tensors of other parts of the model, without effect on the next token of text


class Architecture(NamedTuple):
    """A class of another project, and the function that maps its config.json."""

    make: Callable[[Config], ModelMapping]
    class_name: str
    project: str


FLA = "flash-linear-attention"
_ARCHITECTURES: dict[str, Architecture] = {}

# Released models that cannot be read, by model_type: the reason.
UNSUPPORTED = {
    "falcon_mamba": "it normalises dt, B and C, which `mamba` does not",
    "minimax_m1": "a mixture of experts in every layer",
    "minimax_text_01": "a mixture of experts in every layer",
    "qwen3_5_moe": "a mixture of experts in every layer",
    "qwen3_next": "a mixture of experts in every layer",
    "rwkv5": "there is no mixer with RWKV-5's time mixing",
}


def architecture(model_type: str, class_name: str, project: str = "transformers") -> Callable:
    """Decorator: `@architecture("mamba", "MambaForCausalLM")` on a function from Config to ModelMapping."""

    def enrol(make):
        _ARCHITECTURES[model_type] = Architecture(make, class_name, project)
        return make

    return enrol


def names() -> tuple[str, ...]:
    """The supported model types."""
    return tuple(sorted(_ARCHITECTURES))


def model_mapping(config: Config) -> ModelMapping:
    """The mapping for a config.json; ConvertError for an unsupported model type, class, setting or value."""
    where, model_type = config.where, config.get("model_type", None)
    if model_type is None:
        projects = f"transformers or {FLA}"
        raise ConvertError(f"{where} has no model_type, as files of mamba_ssm have none; wanted a file that {projects} saved")
    if model_type in UNSUPPORTED:
        raise ConvertError(f"{where}: model_type={model_type!r} is not supported: {UNSUPPORTED[model_type]}")
    if model_type not in _ARCHITECTURES:
        near = did_you_mean(str(model_type), _ARCHITECTURES)
        raise ConvertError(f"{where}: model_type={model_type!r} is not supported, only {', '.join(names())}.{near}")
    found = _ARCHITECTURES[model_type]
    classes = config.get("architectures", None)
    if classes and found.class_name not in classes:
        only = f"only {found.class_name} of {found.project}"
        raise ConvertError(f"{where}: architectures={classes!r} is not supported for model_type={model_type!r}, {only}")
    if quantization := config.get("quantization_config", None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ConvertError(f"{where}: quantization_config of quant_method={method!r} is not supported, only unquantised weights")
    made = found.make(config)
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
    config.only("rope_scaling", None)
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
