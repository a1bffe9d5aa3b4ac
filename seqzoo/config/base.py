"""Base of the sections of a config: a strict model, and types of fields that are one word on the command line."""

import ast
import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any

import tyro
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from seqzoo.specs import Registry, Settings, Spec, did_you_mean, parse, split


class ConfigError(ValueError):
    """A wrong or unreadable config. One line: the setting, the value found, the values wanted."""


# The last error of a section: a parser that reports it in its own words, over several lines, takes it for a usage error.
last_refusal: ContextVar[ConfigError | None] = ContextVar("last_refusal", default=None)


def one_word(parse, show, metavar):
    """Lets tyro read a field from one word of the command line."""

    def read(words):
        try:
            return parse(words[0])
        except ValueError as error:
            last_refusal.set(ConfigError(str(error)))
            raise

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: not isinstance(value, str),
        str_from_instance=lambda value: [show(value)],
    )


def _dict(text: str) -> dict:
    """Parses a dict in JSON or in Python."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        pass
    try:
        return dict(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError):
        raise ValueError(f'{text!r} is not a dict; wanted for example \'{{"model.layers": ("gla", "mamba2")}}\'') from None


def tuples(value):
    """Turns the lists of JSON back into tuples."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


Layers = Annotated[tuple[str, ...], one_word(split, ", ".join, "SPECS")]
Modules = Annotated[tuple[str, ...], one_word(split, ", ".join, "MODULES")]
Axes = Annotated[dict[str, tuple[Any, ...] | dict[str, dict[str, Any]]], one_word(_dict, json.dumps, "DICT")]
Rules = Annotated[dict[str, str | None], one_word(_dict, json.dumps, "DICT")]


def as_text(spec: Any) -> Any:
    """The spec string of a typed object; anything else unchanged."""
    return str(spec) if isinstance(spec, Spec | Settings) else spec


def check_if_registered(registry: Registry, spec: str | Spec | Settings) -> str:
    """The spec in its canonical form, its settings checked if its name is registered.

    Another name may belong to a module that is not imported yet: `Experiment` refuses it after its imports.
    """
    parsed = parse(spec) if isinstance(spec, str) else spec.to_spec() if isinstance(spec, Settings) else spec
    return str(registry.check(parsed) if parsed.name in registry.names() else parsed)


def _message(problem) -> str:
    where = ".".join(map(str, problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{where}: {what}{found}" if where else what


def _is_unicode(text: str) -> bool:
    """Tells if a text has no lone surrogates, with which Python stands for bytes of file names that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names, with a list of the known ones."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except ValidationError as error:  # pydantic's own text takes several lines
            refusal = ConfigError("; ".join(_message(problem) for problem in error.errors()))
            last_refusal.set(refusal)
            raise refusal from None

    @model_validator(mode="before")
    @classmethod
    def _known_names_only(cls, values):
        if not isinstance(values, dict):
            return values
        for name in values:
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"{cls.__name__} has no setting {name!r}.{did_you_mean(name, cls.model_fields)} Settings: {known}")
        for name, value in values.items():
            for text in value if isinstance(value, tuple | list) else (value,):
                if isinstance(text, str) and not _is_unicode(text):
                    raise ValueError(f"{name} is {text!a}; wanted a name in UTF-8, since config.json records it")
        return tuples(values)
