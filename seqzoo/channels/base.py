"""The registry of channel mixers, and what those that look at one token have in common."""

from typing import Any

from flax import nnx

from seqzoo.registry import Registry

registry = Registry("channel mixer", reserved=("dtype", "param_dtype", "depth", "rngs"))
register = registry.register


class Pointwise(nnx.Module):
    """A channel mixer that looks at no other token, so its state is empty."""

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> tuple:
        """The empty tuple: nothing is carried."""
        return ()


@register("none")
def no_channel_mixer(d_model: int, *, dtype=None, param_dtype=None, rngs=None) -> None:
    """No channel mixing: the block is its mixer alone."""
    return None
