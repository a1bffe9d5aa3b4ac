"""Names and spec strings: how mixers, channel mixers, norms and tasks are chosen in text.

A spec string is a name, optionally with keyword settings: "gla" or "gla(heads=4, expand_v=2)". Settings are Python literals.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class SpecError(ValueError):
    """A spec string that names something unknown. The message says what was found, what exists, and the nearest."""


class Spec(NamedTuple):
    """A parsed spec string; `str(spec)` writes it back in one canonical form."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self):
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings)})" if self.settings else self.name


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def choice(setting: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known; else ValueError that names setting, value and choices."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{setting}={value!r} is unknown; it is one of {', '.join(known)}.{did_you_mean(str(value), known)}")
    return value


def parse(spec: str) -> Spec:
    """Parses "name" or "name(key=literal, ...)"; raises SpecError on anything else."""
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError as error:
        raise SpecError(
            f"{spec!r} is no spec: wanted a name, or a name with settings such as 'gla(heads=4)' ({error.msg})"
        ) from None
    if isinstance(tree, ast.Name):
        return Spec(tree.id)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or tree.args:
        raise SpecError(f"{spec!r} is no spec: wanted a name, or a name with keyword settings such as 'gla(heads=4)'")
    settings = []
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise SpecError(f"{spec!r}: '**' has no meaning in a spec; write each setting out")
        try:
            settings.append((keyword.arg, ast.literal_eval(keyword.value)))
        except ValueError:
            raise SpecError(
                f"{spec!r}: the value of {keyword.arg!r} is no literal; quote strings, as in window='full' or heads=4"
            ) from None
    return Spec(tree.func.id, tuple(settings))


def split(specs: str) -> tuple[str, ...]:
    """Splits "a, b(x=1, y=2)" at its top-level commas."""
    parts, depth, current = [], 0, ""
    for character in specs:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return tuple(part.strip() for part in (*parts, current) if part.strip())


class Registry:
    """A table of classes (or factories) by name. `reserved` are arguments that the caller supplies, so no spec may set them."""

    def __init__(self, kind: str, reserved: Iterable[str] = ()):
        self.kind = kind
        self.reserved = frozenset(reserved)
        self._table: dict[str, Callable] = {}

    def register(self, name: str) -> Callable:
        """Class decorator: `@register("gla")`."""

        def enrol(factory):
            if name in self._table:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._table[name]} and {factory}")
            self._table[name] = factory
            return factory

        return enrol

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._table)

    def get(self, name: str) -> Callable:
        """The class of that name; raises SpecError with a did-you-mean."""
        if name not in self._table:
            raise SpecError(f"no {self.kind} is called {name!r}.{did_you_mean(name, self._table)} Known: {', '.join(self._table)}")
        return self._table[name]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of what `name` builds."""
        factory = self.get(name)
        # A class is asked for its __init__: the metaclass of Flax modules hides it from inspect.signature.
        parameters = inspect.signature(factory.__init__ if isinstance(factory, type) else factory).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}

    def settings(self, name: str) -> dict[str, inspect.Parameter]:
        """The settings a spec may give, by name, with their defaults."""
        return {key: p for key, p in self.parameters(name).items() if key not in self.reserved}

    def check(self, spec: str | Spec) -> Spec:
        """Parses and validates; raises SpecError for an unknown name or setting, or one that is missing."""
        spec = parse(spec) if isinstance(spec, str) else spec
        valid = self.settings(spec.name)
        for key, _ in spec.settings:
            if key not in valid:
                known = ", ".join(valid) or "none"
                raise SpecError(f"{self.kind} {spec.name!r} has no setting {key!r}.{did_you_mean(key, valid)} Settings: {known}")
        missing = [k for k, p in valid.items() if p.default is p.empty and k not in dict(spec.settings)]
        if missing:
            raise SpecError(
                f"{self.kind} {spec.name!r} needs a value for {', '.join(missing)}: write {spec.name}({missing[0]}=...)"
            )
        return spec

    def create(self, spec: str | Spec, *args, **reserved):
        """Builds what the spec string names. `depth` is handed on to those that take it."""
        spec = self.check(spec)
        if "depth" not in self.parameters(spec.name):
            reserved.pop("depth", None)
        return self.get(spec.name)(*args, **dict(spec.settings), **reserved)
