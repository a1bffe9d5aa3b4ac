"""The section `mesh`: which devices do what."""

from pydantic import Field, field_validator, model_validator

from seqzoo.config.base import Rules, Section
from seqzoo.model import sharding
from seqzoo.specs import did_you_mean


class Mesh(Section):
    """How many devices lie along each mesh axis; one size may be -1: all that are left."""

    replica: int = 1
    """Copies of the parameters; the batch is split over them."""
    fsdp: int = -1
    """The batch and the parameters' "embed" axis are split over these."""
    seq: int = 1
    """Time is split over these: every device holds a piece of each row, and states travel."""
    tensor: int = 1
    """Heads, channels and vocabulary are split over these, and the parameters that make them."""
    rules: Rules = Field(default=dict(sharding.RULES), validate_default=True)
    """Which mesh axis each parameter axis is split over; None: not split. What is left out stays as by default."""

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
            raise ValueError(f"sizes are {sizes}; wanted at least 1 each, and at most one -1 (all devices that are left)")
        return self

    def sizes(self) -> dict[str, int]:
        """The size along each mesh axis, in the mesh's order."""
        return {axis: getattr(self, axis) for axis in sharding.AXES}
