"""Block: a mixer and a channel mixer on the residual stream. LayerPattern: blocks that repeat over depth."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from seqzoo import channels, mixers
from seqzoo.model.sharding import constrain
from seqzoo.nn import LayerNorm, RMSNorm, dropout
from seqzoo.nn.layer import Depth
from seqzoo.specs import Settings, Spec

AnySpec = str | Spec | Settings
"""A layer with its settings: a spec string, or the typed object."""
Norm = Literal["rms", "layer"]
NormPosition = Literal["pre", "post"]


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """Settings that all blocks of a model share, as `LanguageModel` explains them."""

    channel: AnySpec = "swiglu"
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    normed_residual: bool = False
    residual_scale: float = 1.0
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def make_norm(self, width: int, rngs: nnx.Rngs) -> RMSNorm | LayerNorm:
        """A norm over the last axis, of that width."""
        kind = RMSNorm if self.norm == "rms" else LayerNorm
        return kind(width, eps=self.norm_eps, param_dtype=self.param_dtype, rngs=rngs)


class BlockState(NamedTuple):
    """State of a block: its mixer's and its channel mixer's, `()` if there is none."""

    mixer: Any
    channel: Any


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + channel(norm(x)) (pre-norm, Xiong et al. 2020, arXiv:2002.04745).

    `norm_position="post"` gives x + norm(mixer(x)); `residual_scale` a gives a x + mixer(norm(x)); `normed_residual` gives
    n + mixer(n) with n = norm(x), so that everything passes through a norm. With `channel="none"` the block is its mixer alone.
    """

    def __init__(
        self,
        d_model: int,
        mixer: AnySpec,
        settings: BlockSettings,
        *,
        norm_position: NormPosition,
        depth: Depth,
        rngs: nnx.Rngs,
    ):
        if norm_position == "post" and settings.normed_residual:
            raise ValueError("normed_residual=True with norm_position='post': no branch reads a norm; set norm_position='pre'")
        self.norm_position: NormPosition = norm_position
        dtypes = {"dtype": settings.dtype, "param_dtype": settings.param_dtype}
        self.mixer_norm = settings.make_norm(d_model, rngs)
        self.mixer = mixers.create(mixer, d_model, depth=depth, rngs=rngs, **dtypes)
        self.channel = channels.create(settings.channel, d_model, depth=depth, rngs=rngs, **dtypes)
        self.channel_norm = None if self.channel is None else settings.make_norm(d_model, rngs)
        self.normed_residual, self.residual_scale = settings.normed_residual, settings.residual_scale
        self.dropout = settings.dropout

    def __call__(
        self,
        x: Array,
        layer_inputs: dict[str, Any],
        *,
        state: BlockState | None = None,
        segment_ids: Array | None = None,
        positions: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, dict[str, Any], BlockState | None]:
        """[b, t, d_model] -> ([b, t, d_model], layer inputs of later blocks, state or None).

        `layer_inputs`: values that mixers pass to later layers besides x (`Mixer.with_layer_inputs`); the rest is as for a mixer.
        """
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        mixer_state, channel_state = (None, None) if state is None else state
        per_token = {"segment_ids": segment_ids, "positions": positions}
        branch_input = self.branch_input(x, self.mixer_norm)
        if layer_inputs:
            y, mixer_state, layer_inputs = self.mixer.with_layer_inputs(
                branch_input, layer_inputs, state=mixer_state, key=keys[0], **per_token
            )
        else:
            y, mixer_state = self.mixer(branch_input, state=mixer_state, key=keys[0], **per_token)
        x = self.add_branch(x, branch_input, y, self.mixer_norm, keys[1])
        if self.channel is not None and self.channel_norm is not None:
            branch_input = self.branch_input(x, self.channel_norm)
            y, channel_state = self.channel(branch_input, state=channel_state, key=keys[2], **per_token)
            x = self.add_branch(x, branch_input, y, self.channel_norm, keys[3])
        x = constrain(x, "b t .")
        return x, layer_inputs, None if state is None else BlockState(mixer_state, channel_state)

    def branch_input(self, x: Array, norm: RMSNorm | LayerNorm) -> Array:
        """The input of a branch, of the residual stream x."""
        return x if self.norm_position == "post" else norm(x)

    def add_branch(self, x: Array, branch_input: Array, y: Array, norm: RMSNorm | LayerNorm, key: Array | None) -> Array:
        """The residual stream x after a branch with output y: [b, t, d_model] in x's dtype."""
        y = dropout(norm(y) if self.norm_position == "post" else y, self.dropout, key)
        residual = branch_input if self.normed_residual else x
        return (residual if self.residual_scale == 1 else self.residual_scale * residual) + y.astype(x.dtype)

    def init_state(self, batch: int, max_length: int | None = None, dtype: DTypeLike | None = None) -> BlockState:
        """The empty state of both halves."""
        channel = () if self.channel is None else self.channel.init_state(batch, max_length, dtype)
        return BlockState(self.mixer.init_state(batch, max_length, dtype), channel)

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs."""
        return self.mixer.flops(batch, length) + (0 if self.channel is None else self.channel.flops(batch, length))


class LayerPattern(nnx.Module):
    """Consecutive blocks, named "0_mamba2", "1_softmax" and so on: one repeat of a model's `layers`, or the remainder.

    Args:
      d_model: width of the residual stream.
      layers: each block's mixer.
      norm_positions: one for each of `layers`.
      settings: those of all blocks.
      first: index of the first block in the model; may be traced.
      depth: number of blocks in the model.
    """

    def __init__(
        self,
        d_model: int,
        layers: Sequence[AnySpec],
        norm_positions: Sequence[NormPosition],
        settings: BlockSettings,
        *,
        first: int | Array,
        depth: int,
        rngs: nnx.Rngs,
    ):
        self.names = tuple(f"{i}_{mixers.registry.check(spec).name}" for i, spec in enumerate(layers))
        for i, (name, spec, position) in enumerate(zip(self.names, layers, norm_positions, strict=True)):
            setattr(self, name, Block(d_model, spec, settings, norm_position=position, depth=(first + i, depth), rngs=rngs))

    def blocks(self) -> dict[str, Block]:
        """The blocks in order."""
        return {name: getattr(self, name) for name in self.names}

    def init_layer_inputs(self, x: Array) -> dict[str, Any]:
        """Layer inputs before the first layer, of all mixers: arrays per token of x, by name."""
        return {name: leaf for block in self.blocks().values() for name, leaf in block.mixer.init_layer_inputs(x).items()}

    def init_state(self, batch: int, max_length: int | None = None, dtype: DTypeLike | None = None) -> dict[str, BlockState]:
        """The empty state of each block, by name."""
        return {name: block.init_state(batch, max_length, dtype) for name, block in self.blocks().items()}

    def flops(self, batch: int, length: int) -> int:
        """Forward model FLOPs."""
        return sum(block.flops(batch, length) for block in self.blocks().values())
