"""The contract of a channel mixer, and the registry of them."""

from typing import Any

from jax import Array

from seqzoo.nn.layer import Layer
from seqzoo.specs import Registry, Settings

registry = Registry("channel mixer")
register = registry.register


class ChannelMixer(Layer):
    """A layer that works on channels, with the call and the law of a `seqzoo.mixers.Mixer`. This base has no state."""

    def __call__(
        self,
        x: Array,
        *,
        state: Any = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """[b, t, d_model] -> ([b, t, d_model], the state after the call, None if none was given)."""
        raise NotImplementedError

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> Any:
        """The empty state of `batch` rows: () unless the layer looks at other tokens."""
        return ()

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs: matrix products at 2mnk, no elementwise work."""
        raise NotImplementedError


@register("none")
class NoChannelMixer(Settings):
    """No channel mixing: a block is its mixer alone."""
