"""Settings of a user's function: the arguments of the function, typed by their annotations."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pydantic import create_model

from seqzoo.specs import Settings


class FunctionSettings(Settings):
    """Settings that are the arguments of a function, except the `reserved` ones, which the trainer gives."""

    function: ClassVar[Callable[..., Any]]
    reserved: ClassVar[tuple[str, ...]] = ()

    def call(self, **given: Any) -> Any:
        """The function's result for these settings and the reserved arguments that it has."""
        function = type(self).function
        known = inspect.signature(function).parameters
        settings = {name: getattr(self, name) for name in type(self).model_fields}
        return function(**settings, **{name: value for name, value in given.items() if name in known})


Kind = TypeVar("Kind", bound=FunctionSettings)


def settings_of_function(function: Callable[..., Any], kind: type[Kind]) -> type[Kind]:
    """A subclass of `kind` with a field for every argument of the function.

    Raises:
      TypeError: an argument that no name sets (*args, **kwargs or positional only).
    """
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__} has the argument {parameter}; wanted arguments with names only")
        if parameter.name in kind.reserved:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        guess = Any if default in (..., None) else type(default)
        fields[parameter.name] = (guess if parameter.annotation is parameter.empty else parameter.annotation, default)
    made = create_model(function.__name__, __base__=kind, __doc__=function.__doc__, __module__=function.__module__, **fields)
    made.function = staticmethod(function)
    return made
