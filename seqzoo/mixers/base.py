"""The interface of a mixer, and the registry of mixers."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.mixers.shapes import Shape
from seqzoo.nn.layer import Layer
from seqzoo.specs import Registry

State = Any  # a NamedTuple of arrays, with `segment` [b] int32 among them

registry = Registry("mixer")
register = registry.register


class Mixer(Layer):
    """A causal map on sequences that carries a state: y, state' = mixer(x, state=state).

    The law: for any split of x along time, running the pieces in order while passing the state gives the y and the final state of
    running x at once. `tests/mixers/test_law.py` checks every registered mixer for this, and for causality, packing and precision.
    """

    shapes: ClassVar[tuple[Shape, ...]] = ()  # with which it is given a budget, the preferred first; (): it cannot be given one

    def __call__(
        self,
        x: Array,
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, State | None]:
        """Mixes x along time.

        Args:
          x: [b, t, d_model].
          state: from `init_state` or an earlier call; None starts empty and returns no state.
          segment_ids: [b, t] int32, the document of each token, 0 for padding; None continues one document. `clear_padding` first
            replaces what stands at padding, NaN included, by zeros. A NaN inside a document may reach its row.
          positions: [b, t] int32, index inside the own document; None counts on from the state. Mixers without positions ignore it.
          key: PRNG key for dropout and other sampling; None is deterministic.
        Returns:
          (y [b, t, d_model], the state after the last token, or None if none was given). y at padding is finite and means nothing.
        """
        raise NotImplementedError

    def with_layer_inputs(
        self,
        x: Array,
        layer_inputs: dict[str, Any],
        *,
        state: State | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, State | None, dict[str, Any]]:
        """`__call__` for a mixer that also reads values of earlier layers: (y, state, the layer inputs of later layers)."""
        y, state = self(x, state=state, segment_ids=segment_ids, positions=positions, key=key)
        return y, state, layer_inputs

    def init_layer_inputs(self, x: Array) -> dict[str, Any]:
        """Layer inputs of the first layer, by name: arrays per token of x that layers pass on, such as RWKV-7's value residual."""
        return {}

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> State:
        """The empty state of `batch` rows. `max_length` bounds caches that grow; `dtype` is that of cached activations."""
        raise NotImplementedError

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs of the definition: matrix products at 2mnk, causal pairs t(t+1)/2, no elementwise work."""
        raise NotImplementedError


def state_kwargs(state: State | None, leaf: str) -> dict[str, Any]:
    """The keyword arguments with which an op continues from a leaf of a state; {} for None."""
    return {} if state is None else {"initial_state": getattr(state, leaf), "initial_segment": state.segment}


def next_state(state: State | None, segment_ids: Array | None, **leaves) -> State | None:
    """The state after a call: `leaves` replaced, `segment` moved on; None stays None."""
    if state is None:
        return None
    return state._replace(segment=segments.last_segment(segment_ids, state.segment), **leaves)


def state_bytes(mixer: Any, max_length: int | None = None, dtype: Any = None) -> int:
    """Bytes of decode memory per row: those of the state that a mixer, or a model, really carries."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: mixer.init_state(1, max_length, dtype)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def memory_bytes(mixer: Any, max_length: int | None = None, dtype: Any = None) -> int:
    """Bytes of recurrent memory per row, as papers count them: one head of 32 x 32 numbers in float32 is 4,096 bytes.

    It is `state_bytes` without what a mixer carries beside its memory: counters and document ids (integers), the last inputs of
    convolutions and token shifts (the fields `tail`, `..._tail` and `tails` of a state). A KV cache counts in full, with
    `max_length` tokens or those of the window.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: mixer.init_state(1, max_length, dtype)))
    is_tail = lambda path: any(str(getattr(key, "name", "")).endswith(("tail", "tails")) for key in path)
    memory = (leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating) and not is_tail(path))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in memory)
