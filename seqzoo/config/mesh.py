"""The section `mesh`: parallelism over devices."""

from pydantic import Field, field_validator, model_validator

from seqzoo.config.base import Rules, Section
from seqzoo.model import sharding
from seqzoo.specs import did_you_mean


class Mesh(Section):
    """Number of devices along each mesh axis; one size may be -1: all remaining devices."""

    replica: int = 1
    """Data parallelism with copies of the parameters: the batch is split over these devices."""
    fsdp: int = -1
    """Fully sharded data parallelism: the batch and the parameters' "embed" axis are split over these devices."""
    seq: int = 1
    """Context parallelism: time is split over these devices. Each holds a stretch of every row; states are exchanged."""
    tensor: int = 1
    """Tensor parallelism: heads, channels and vocabulary are split over these devices, with the parameters that make them."""
    rules: Rules = Field(default=dict(sharding.RULES), validate_default=True)
    """Mesh axis over which each parameter axis is split; None: not split. Parameter axes that are not given keep their defaults."""

    @field_validator("rules")
    @classmethod
    def _known_axes(cls, value):
        for name, axis in value.items():
            if name not in sharding.RULES:
                known = tuple(sharding.RULES)
                raise ValueError(f"no parameter axis is called {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
            if axis is not None and axis not in sharding.AXES:
                near = did_you_mean(axis, sharding.AXES)
                raise ValueError(f"{name} is on {axis!r}, wanted None or one of {', '.join(sharding.AXES)}.{near}")
        return {**sharding.RULES, **value}

    @model_validator(mode="after")
    def _sizes(self):
        sizes = self.sizes()
        if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"sizes are {sizes}; wanted at least 1 each, and at most one -1 (all remaining devices)")
        return self

    def sizes(self) -> dict[str, int]:
        """The size along each mesh axis, in the mesh's order."""
        return {axis: getattr(self, axis) for axis in sharding.AXES}
