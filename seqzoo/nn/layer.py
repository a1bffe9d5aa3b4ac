"""The base of all layers that a spec string can name: settings are declared as typed class fields."""

from typing import Any, ClassVar, dataclass_transform

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from seqzoo import specs
from seqzoo.kernels.common import segments
from seqzoo.specs import Size, SpecError, settings_model

Depth = tuple[Any, int]
"""(index, count) of a layer in its stack; the index may be traced."""


def positional(*, kw_only: bool = False) -> Any:
    """Marks the one field that a constructor takes by position."""


@dataclass_transform(kw_only_default=True, field_specifiers=(positional,))
class _Declared(nnx.Module):
    """Makes type checkers derive the constructor of a layer from its fields; `Layer.__init__` is what runs."""


class Width(specs.Settings):
    """The one argument that every layer has, checked like a setting."""

    registered_name = "layer"
    d_model: Size


class Layer(_Declared):
    """A layer whose settings are its annotated class fields, each with a default and a line of help.

        class Swish(Layer):
            expansion: Positive = 4.0
            \"\"\"Hidden width over d_model.\"\"\"

            def setup(self, rngs, depth):
                self.up = Linear(self.d_model, round(self.expansion * self.d_model), **self.factory_kwargs(rngs))

    `Swish(64, expansion=2, rngs=nnx.Rngs(0))` checks the settings, sets them as attributes and calls `setup`.
    `Swish.Settings(expansion=2)` are the settings alone; they can be used wherever a spec string can.
    """

    Settings: ClassVar[type[specs.Settings]]
    registered_name: ClassVar[str | None] = None

    d_model: int = positional()
    """Width of input and output."""
    depth: Depth | None = None
    """(index, count) of the layer, for initial values that depend on it. Not kept."""
    dtype: Any = None
    """Dtype of the computation; None promotes inputs and parameters."""
    param_dtype: Any = jnp.float32
    """Dtype of the parameters."""
    rngs: nnx.Rngs
    """Source of the initial parameters. Not kept."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            raise TypeError(f"{cls.__name__} defines __init__; wanted settings as annotated fields, and layers made in setup")
        cls.Settings = settings_model(
            cls, [base for base in reversed(cls.__mro__) if issubclass(base, Layer) and base is not Layer]
        )

    def __init__(
        self,
        d_model: int,
        *,
        depth: Depth | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **settings: Any,
    ):
        """Checks the settings, sets each as an attribute, and calls `setup`.

        Raises:
          SpecError: a setting or dtype that is unknown or out of range. ValueError: settings that do not fit each other, or
            d_model. TypeError: rngs is something else.
        """
        checked = self.Settings(**settings)
        self.d_model = Width(d_model=d_model).d_model
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"{type(self).__name__}: rngs={rngs!r}, wanted flax.nnx.Rngs, such as nnx.Rngs(0)")
        self.dtype = None if dtype is None else floating_dtype(self.registered_name, "dtype", dtype)
        self.param_dtype = floating_dtype(self.registered_name, "param_dtype", param_dtype)
        for name in type(checked).model_fields:
            setattr(self, name, getattr(checked, name))
        self.setup(rngs, depth)

    def setup(self, rngs: nnx.Rngs, depth: Depth | None) -> None:
        """Makes the parameters and inner layers; the settings are attributes by now."""

    def factory_kwargs(self, rngs: nnx.Rngs) -> dict[str, Any]:
        """The keyword arguments `dtype`, `param_dtype` and `rngs` for inner layers."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}

    def clear_padding(self, x: Array, segment_ids: Array | None) -> Array:
        """x [b, t, d_model], with exact zeros at padding: what stands there, NaN included, reaches neither a value nor a gradient.

        The first line of a `__call__`. Raises ValueError for another shape, and for an empty piece.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"{self.registered_name}: x has shape {x.shape}, wanted [b, t, {self.d_model}]")
        segments.check(segment_ids, None, *x.shape[:2])
        return segments.mask_padding(x, segment_ids)

    def cache_dtype(self, dtype: Any = None) -> Any:
        """The dtype of activations that a state keeps: the one given, else that of the computation."""
        return next(each for each in (dtype, self.dtype, self.param_dtype) if each is not None)


def floating_dtype(owner: str | None, name: str, dtype: DTypeLike) -> jnp.dtype:
    """The dtype, if it is a real floating-point one; else raises SpecError, which begins with `owner` and `name`."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise SpecError(f"{owner or 'layer'}: {name}={dtype!r}, wanted a floating-point dtype such as 'bfloat16'")
    return found


def inner_width(d_model: int, expand: float, setting: str = "expand") -> int:
    """d_model * expand, rounded: the width inside a layer; ValueError if that is 0, which names the setting."""
    width = round(d_model * expand)
    if width < 1:
        raise ValueError(f"{setting}={expand:g} makes an inner width of {width} of d_model={d_model}, wanted at least 1: raise it")
    return width
