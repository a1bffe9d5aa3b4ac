"""Names, spec strings and typed settings: how mixers, tasks, optimizers and the like are chosen, configured and checked.

A spec string is a name, optionally with keyword settings: "gla" or "gla(heads=4, expand_v=2)". Settings are Python literals.
Each is declared once, as an annotated class field with its default, followed by a line of help:

    heads: Size = 4
    \"\"\"Number of heads.\"\"\"

The same check runs wherever a value comes from: a spec string, a constructor, JSON, Linen or the command line.
"""

import ast
import difflib
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from seqzoo import plugins

Size = Annotated[int, Field(ge=1, le=65_536)]
"""A number of heads, channels, states ..."""
Blocks = Annotated[int, Field(ge=1, le=4096)]
"""A number of blocks, one after the other."""
Length = Annotated[int, Field(ge=1, lt=2**31)]
"""A number of tokens, of batches, of examples ..."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Expansion = Annotated[float, Field(gt=0, le=4096)]
"""A width over d_model."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]
"""A dropout rate, a decay per step ..."""
Number = Annotated[float, Field(allow_inf_nan=False)]


class SpecError(ValueError):
    """A spec that names something unknown, or a setting out of its range. One line: setting, value found, value wanted."""


class Spec(NamedTuple):
    """A parsed spec; `str(spec)` writes it back in one canonical form."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        shown = (f"{name}={'...' if value is ... else repr(value)}" for name, value in self.settings)
        return f"{self.name}({', '.join(shown)})" if self.settings else self.name


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest known word, or nothing."""
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def choice(setting: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known; else ValueError that names setting, value and choices."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{setting}={value!r} is unknown; it is one of {', '.join(known)}.{did_you_mean(str(value), known)}")
    return value


def parse(text: str) -> Spec:
    """Parses "name" or "name(key=literal, ...)"; raises SpecError on anything else."""
    found = _shown(text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else error
        raise SpecError(f"{found} is not a spec: wanted a name, or a name with settings such as 'gla(heads=4)' ({why})") from None
    if isinstance(tree, ast.Name):
        return Spec(tree.id)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or tree.args:
        raise SpecError(f"{found} is not a spec: wanted a name, or a name with keyword settings such as 'gla(heads=4)'")
    settings = []
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise SpecError(f"{found}: '**' has no meaning in a spec; write each setting out")
        if keyword.arg in dict(settings):
            raise SpecError(f"{found}: {keyword.arg!r} is given twice, wanted once")
        try:
            settings.append((keyword.arg, ast.literal_eval(keyword.value)))
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise SpecError(
                f"{found}: the value of {keyword.arg!r} is not a literal; quote strings, as in window='full' or heads=4"
            ) from None
    return Spec(tree.func.id, tuple(settings))


def split(specs: str) -> tuple[str, ...]:
    """Splits "a, b(x=1, y=2)" at its commas outside of brackets and quotes; the last character may be one.

    Raises SpecError if a part is empty.
    """
    parts, nesting, quote, current = [], 0, "", ""
    for character in specs:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            nesting += (character in "([{") - (character in ")]}")
        if character == "," and nesting == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += character
    found = [part.strip() for part in (*parts, current)]
    found = found[:-1] if not found[-1] else found
    if "" in found:
        raise SpecError(f"{_shown(specs)} has nothing between two commas, wanted a name")
    return tuple(found)


class Settings(BaseModel):
    """A frozen group of settings. Tasks, optimizers and schedules derive from it; `settings_model` makes one of a layer's fields.

    Raises SpecError for a setting that is unknown, missing, of another type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True)
    registered_name: ClassVar[str | None] = None

    def __init__(self, **values: Any):
        values = {name: _tuples(value) for name, value in values.items()}  # JSON has no tuples
        try:
            super().__init__(**values)
        except ValidationError as error:  # whose own text takes many lines
            problems = (_problem(type(self), problem, values) for problem in error.errors())
            raise SpecError("; ".join(dict.fromkeys(problems))) from None

    def to_spec(self) -> Spec:
        """The spec of an equal object: the registered name, and the settings that differ from their defaults."""
        given = {
            name: getattr(self, name) for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        }
        return Spec(spec_name(type(self)), tuple(given.items()))

    def __str__(self) -> str:
        return str(self.to_spec())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def spec_name(owner: type) -> str:
    """The name under which a class is registered; without one, its own."""
    return getattr(owner, "registered_name", None) or owner.__name__


def _problem(model: type[Settings], problem: Any, values: Mapping[str, Any]) -> str:
    """One of pydantic's errors in one line."""
    what, known, message = spec_name(model), model.model_fields, problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return f"{what}: {message}"
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{what} has no setting {name!r}.{did_you_mean(name, known)} Settings: {', '.join(known) or 'none'}"
    if name not in values:
        return f"{what} needs a value for {name}: write {what}({name}=...)"
    if problem["type"] != "value_error":
        message = f"wanted {type_in_words(known[name].annotation, known[name].metadata)}"
    return f"{what}: {name}={_shown(values[name])}, {message}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def type_in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """The type of a setting as help and errors show it: "int in [1, 65536]", "'rms' or 'layer' or None", "number > 0"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for given in arguments[1:] for part in getattr(given, "metadata", [given])]
        return type_in_words(arguments[0], [*inner, *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_in_words, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is ...:
            return f"a tuple of {type_in_words(arguments[0])}"
        return f"({', '.join(map(type_in_words, arguments))})"
    names = {int: "int", float: "number", bool: "True or False", str: "text", type(None): "None"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation))) + _range_in_words(metadata)


def _range_in_words(metadata: Iterable[Any]) -> str:
    found = {name: getattr(part, name) for part in metadata for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}
    found = {
        sign: f"2**{n.bit_length() - 1}" if isinstance(n, int) and n > 2**16 and n.bit_count() == 1 else n
        for sign, n in found.items()
    }
    low = f"[{found['ge']}" if "ge" in found else f"({found['gt']}" if "gt" in found else None
    high = f"{found['le']}]" if "le" in found else f"{found['lt']})" if "lt" in found else None
    if low and high:
        return f" in {low}, {high}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return "".join(f" {signs[name]} {bound}" for name, bound in found.items())


def settings_model(owner: type, bases: Iterable[type]) -> type[Settings]:
    """A model of the annotated fields of a layer and of its bases; a class variable is not a setting."""
    fields: dict[str, Any] = {}
    for base in bases:
        for name, annotation in inspect.get_annotations(base, eval_str=True).items():
            if get_origin(annotation) is not ClassVar:
                fields[name] = (annotation, base.__dict__.get(name, ...))
    return create_model(owner.__name__, __base__=Settings, __doc__=owner.__doc__, __module__=owner.__module__, **fields)


P = ParamSpec("P")


def checked(*, skip: Collection[str] = ()) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorator of a constructor: checks its arguments against their annotations, except those in `skip`. Layers need no decorator.

    Raises SpecError, as `Settings`.
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        signature = inspect.signature(init)

        @functools.cache
        def model(owner: type) -> type[Settings]:
            annotations = get_type_hints(init, include_extras=True)
            arguments = [p for name, p in signature.parameters.items() if name in annotations and name not in skip]
            fields: Any = {p.name: (annotations[p.name], ... if p.default is p.empty else p.default) for p in arguments}
            return create_model(owner.__name__, __base__=Settings, __module__=owner.__module__, **fields)

        @functools.wraps(init)
        def checking(*args: P.args, **kwargs: P.kwargs) -> None:
            given = signature.bind(*args, **kwargs).arguments
            known = model(type(args[0]))
            known(**{name: value for name, value in given.items() if name in known.model_fields})
            init(*args, **kwargs)

        return checking

    return decorate


class Help(NamedTuple):
    """A setting in words."""

    name: str
    type: str  # with its range
    default: Any  # `...` where there is none
    text: str


def settings_help(owner: Any) -> list[Help]:
    """The settings of a registered class in words, in the order in which they are declared."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        texts |= _attribute_docstrings(base) if base.__module__ != "builtins" else {}
    return [
        Help(
            name,
            type_in_words(field.annotation, field.metadata),
            ... if field.is_required() else field.default,
            texts.get(name, ""),
        )
        for name, field in settings_of(owner).model_fields.items()
    ]


def settings_of(owner: Any) -> type[Settings]:
    """The settings of a registered class: a task or an optimizer is its own, a layer has them as `Settings`."""
    return owner if issubclass(owner, Settings) else owner.Settings


@functools.cache
def _attribute_docstrings(owner: type) -> dict[str, str]:
    """The docstrings that follow the annotated fields in a class body; {} where there is no source."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, TypeError, SyntaxError):
        return {}
    return {
        field.target.id: inspect.cleandoc(line.value.value)
        for field, line in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    }


Class = TypeVar("Class", bound=type)


class Registry:
    """Classes by name: subclasses of `Settings`, and layers, whose annotated fields are their settings."""

    def __init__(self, kind: str):
        self.kind = kind
        self._table: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator: `@register("gla")`."""

        def enrol(owner: Class) -> Class:
            if name in self._table:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._table[name]} and {owner}")
            self._table[name] = owner
            owner.registered_name = settings_of(owner).registered_name = name
            return owner

        return enrol

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._table)

    def get(self, name: str) -> Any:
        """The class of that name, installed plugins included; raises SpecError with the nearest name."""
        if name not in self._table:
            plugins.import_entry_points()
        if name not in self._table:
            raise SpecError(f"no {self.kind} is called {name!r}.{did_you_mean(name, self._table)} Known: {', '.join(self._table)}")
        return self._table[name]

    def check(self, spec: str | Spec | Settings) -> Spec:
        """The spec, its name and every setting checked; raises SpecError."""
        spec = parse(spec) if isinstance(spec, str) else spec.to_spec() if isinstance(spec, Settings) else spec
        if not isinstance(spec, Spec):
            raise SpecError(
                f"{_shown(spec)} is not a spec: wanted the name of one {self.kind}, with settings such as 'gla(heads=4)'"
            )
        settings_of(self.get(spec.name))(**dict(spec.settings))
        return spec

    def create(self, spec: str | Spec | Settings, *args: Any, **others: Any) -> Any:
        """Builds what a spec names; `args` and `others` are what no spec sets, such as widths and keys of initial values."""
        spec = self.check(spec)
        return self.get(spec.name)(*args, **dict(spec.settings), **others)
