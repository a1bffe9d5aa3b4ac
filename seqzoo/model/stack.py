"""Stack: blocks over depth, run by `lax.scan` or by a loop."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from seqzoo.model.block import AnySpec, BlockSettings, LayerPattern, NormPosition
from seqzoo.specs import Spec

StackMode = Literal["scan", "loop"]
Remat = Literal["none", "full", "dots"]

REMAT_POLICIES: dict[Remat, Callable[..., bool] | None] = {  # what a block's forward pass saves for its backward pass
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class StackState(NamedTuple):
    """State of a Stack; a part without layers is ()."""

    scanned: Any  # leading axis over the repeats of the layer pattern; or a tuple with one state per repeat, see `unstack_layers`
    remainder: Any

    def unstack_layers(self) -> "StackState":
        """The same state as a tuple with one entry per repeat; a Stack takes it, runs a loop over layers, and returns such a tuple.

        A loop over tokens then updates each cache in place, while `lax.scan` over layers would write a new stack of caches at every
        token. The price: compile time grows with depth, and in such a loop XLA holds a copy of the parameters, layer by layer.
        """
        leaves = jax.tree.leaves(self.scanned)
        repeats = leaves[0].shape[0] if leaves else 0
        return self._replace(scanned=tuple(_index(i, self.scanned) for i in range(repeats)))


class Stack(nnx.Module):
    """`depth` blocks whose mixers cycle through `layers`.

    Whole repeats of the layer pattern are stacked along a leading parameter axis and run by `lax.scan` (compile time independent of
    depth), or by a loop over the same parameters, which gives the same numbers; the remaining layers run in a Python loop.

    Args:
      d_model: width of the residual stream.
      layers: mixers, cycled over depth.
      settings: those of all blocks.
      depth, norm_position, stack, remat: as in `LanguageModel`.
    """

    def __init__(
        self,
        d_model: int,
        layers: AnySpec | Sequence[AnySpec],
        settings: BlockSettings,
        *,
        depth: int,
        norm_position: NormPosition | Sequence[NormPosition] = "pre",
        stack: StackMode = "scan",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        several = isinstance(layers, Sequence) and not isinstance(layers, str | Spec)
        pattern: tuple[Any, ...] = tuple(layers) if several else (layers,)
        if depth < 1 or not pattern:
            raise ValueError(f"depth={depth} with {len(pattern)} layer specs: wanted at least one of each")
        positions = (norm_position,) * len(pattern) if isinstance(norm_position, str) else tuple(norm_position)
        if len(positions) != len(pattern):
            raise ValueError(f"norm_position={norm_position!r}: wanted one, or one for each of {len(pattern)} layer specs")
        self.mode: StackMode = stack
        self.remat: Remat = remat
        self.repeats, remaining = divmod(depth, len(pattern))

        def make_pattern(rngs: nnx.Rngs, first: int | Array, count: int) -> LayerPattern:
            return LayerPattern(d_model, pattern[:count], positions[:count], settings, first=first, depth=depth, rngs=rngs)

        def make_repeat(key: Array, index: Array) -> LayerPattern:
            return make_pattern(nnx.Rngs(key), index * len(pattern), len(pattern))

        keys, indices = jax.random.split(rngs.params(), self.repeats), jnp.arange(self.repeats, dtype=jnp.int32)
        self.scanned = jax.vmap(make_repeat)(keys, indices) if self.repeats else None
        self.remainder = make_pattern(rngs, depth - remaining, remaining) if remaining else None

    def __call__(
        self,
        x: Array,
        *,
        state: StackState | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, StackState | None]:
        """[b, t, d_model] -> ([b, t, d_model], state or None). Arguments as a mixer's."""

        def run_pattern(carry, xs):
            """One repeat of the pattern, as a step of `lax.scan`."""
            x, layer_inputs = carry
            pattern, states, key = xs
            next_states = {}
            for i, (name, block) in enumerate(pattern.blocks().items()):
                x, layer_inputs, next_states[name] = block(
                    x,
                    layer_inputs,
                    state=None if states is None else states[name],
                    segment_ids=segment_ids,
                    positions=positions,
                    key=None if key is None else jax.random.fold_in(key, i),
                )
            return (x, layer_inputs), None if states is None else next_states

        policy = REMAT_POLICIES[self.remat]
        if policy is not None:
            run_pattern = jax.checkpoint(run_pattern, policy=policy)
        scanned, remainder = (None, None) if state is None else state
        scan_key, remainder_key = (None, None) if key is None else jax.random.split(key)
        layer_inputs = {}
        for pattern in (self.scanned, self.remainder):
            layer_inputs |= {} if pattern is None else pattern.init_layer_inputs(x)
        carry = x, layer_inputs
        if self.scanned is not None:
            keys = None if scan_key is None else jax.random.split(scan_key, self.repeats)
            unstacked = isinstance(scanned, tuple)
            if self.mode == "scan" and not unstacked:
                carry, scanned = jax.lax.scan(run_pattern, carry, (self.scanned, scanned, keys))
            else:
                outputs = []
                for i in range(self.repeats):
                    states = scanned[i] if unstacked else _index(i, scanned)
                    carry, output = run_pattern(carry, (_index(i, self.scanned), states, _index(i, keys)))
                    outputs.append(output)
                scanned = tuple(outputs) if unstacked else jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        if self.remainder is not None:
            carry, remainder = run_pattern(carry, (self.remainder, remainder, remainder_key))
        return carry[0], None if state is None else StackState(scanned, remainder)

    def init_state(self, batch: int, max_length: int | None = None, dtype: DTypeLike | None = None) -> StackState:
        """The empty state of every layer."""
        scanned = remainder = ()
        if self.scanned is not None:
            scanned = jax.vmap(lambda pattern: pattern.init_state(batch, max_length, dtype))(self.scanned)
        if self.remainder is not None:
            remainder = self.remainder.init_state(batch, max_length, dtype)
        return StackState(scanned, remainder)

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs."""
        scanned = 0 if self.scanned is None else self.repeats * self.scanned.flops(batch, length)
        return scanned + (0 if self.remainder is None else self.remainder.flops(batch, length))


def _index(i: int, tree: Any) -> Any:
    """Element i of every leaf's leading axis."""
    return jax.tree.map(lambda leaf: leaf[i], tree)
