"""Blocks of the backbone: a mixer and a channel mixer on the residual stream, and patterns of them."""

from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import Array

from seqzoo import channels, mixers
from seqzoo.model.sharding import constrain
from seqzoo.nn import LayerNorm, RMSNorm, dropout
from seqzoo.specs import choice

NORMS = {"rms": RMSNorm, "layer": LayerNorm}
NORM_AT = ("input", "output")


class BlockState(NamedTuple):
    """The state of a block: its mixer's and its channel mixer's."""

    mixer: Any
    channel: Any


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + channel(norm(x)); `channel="none"` leaves the second half out.

    With `residual_scale` a it is a x + mixer(norm(x)); with `normed_residual` a n + mixer(n) for n = norm(x), so that nothing
    passes by a norm; with `norm_at="output"` x + norm(mixer(x)).
    """

    def __init__(
        self,
        d_model,
        *,
        mixer,
        channel,
        norm,
        norm_eps,
        norm_at,
        normed_residual,
        residual_scale,
        dropout,
        depth,
        dtype,
        param_dtype,
        rngs,
    ):
        norm = partial(NORMS[choice("norm", norm, tuple(NORMS))], eps=norm_eps)
        self.norms_output = choice("norm_at", norm_at, NORM_AT) == "output"
        if self.norms_output and normed_residual:
            raise ValueError("normed_residual=True with norm_at='output': no norm's output is read; set norm_at='input'")
        self.mixer_norm = norm(d_model, param_dtype=param_dtype, rngs=rngs)
        self.mixer = mixers.create(mixer, d_model, depth=depth, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.channel = channels.create(channel, d_model, depth=depth, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.channel_norm = None if self.channel is None else norm(d_model, param_dtype=param_dtype, rngs=rngs)
        self.normed_residual, self.residual_scale, self.dropout = normed_residual, residual_scale, dropout

    def __call__(self, x, streams, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], streams, state). Arguments as those of a mixer's `flow`."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        inner = BlockState(None, None) if state is None else state
        side = {"segment_ids": segment_ids, "positions": positions}
        read = self.read(x, self.mixer_norm)
        y, mixer_state, streams = self.mixer.flow(read, streams, state=inner.mixer, key=keys[0], **side)
        x = self.join(x, read, y, self.mixer_norm, keys[1])
        channel_state = inner.channel
        if self.channel is not None:
            read = self.read(x, self.channel_norm)
            y, channel_state = self.channel(read, state=inner.channel, key=keys[2], **side)
            x = self.join(x, read, y, self.channel_norm, keys[3])
        x = constrain(x, "b t .")
        return x, streams, None if state is None else BlockState(mixer_state, channel_state)

    def read(self, x: Array, norm: nnx.Module) -> Array:
        """What a branch is given of the residual stream."""
        return x if self.norms_output else norm(x)

    def join(self, x: Array, read: Array, y: Array, norm: nnx.Module, key: Array | None) -> Array:
        """The residual stream after a branch that made y of what it read: [b, t, d_model] in x's dtype."""
        y = dropout(norm(y) if self.norms_output else y, self.dropout, key)
        kept = read if self.normed_residual else x
        return (kept if self.residual_scale == 1 else self.residual_scale * kept) + y.astype(x.dtype)

    def init_state(self, batch, max_length=None, dtype=None) -> BlockState:
        """The empty state of both halves."""
        channel = () if self.channel is None else self.channel.init_state(batch, max_length, dtype)
        return BlockState(self.mixer.init_state(batch, max_length, dtype), channel)

    def flops(self, batch, length) -> int:
        """Forward model FLOPs."""
        return self.mixer.flops(batch, length) + (0 if self.channel is None else self.channel.flops(batch, length))


class Period(nnx.Module):
    """One run through a pattern of blocks, named "0_mamba2", "1_softmax" and so on; the unit that a Stack scans over."""

    def __init__(self, d_model, layers, *, norm_at, first, count, rngs, **block):
        self.names = tuple(f"{i}_{mixers.registry.check(spec).name}" for i, spec in enumerate(layers))
        for i, (name, spec, at) in enumerate(zip(self.names, layers, norm_at, strict=True)):
            setattr(self, name, Block(d_model, mixer=spec, norm_at=at, depth=(first + i, count), rngs=rngs, **block))

    def blocks(self) -> dict[str, Block]:
        """The blocks in order."""
        return {name: getattr(self, name) for name in self.names}

    def __call__(self, x, streams, *, state=None, key=None, **side):
        """[b, t, d_model] -> ([b, t, d_model], streams, {name: BlockState} or None)."""
        states = {}
        for i, (name, block) in enumerate(self.blocks().items()):
            inner = None if state is None else state[name]
            at = None if key is None else jax.random.fold_in(key, i)
            x, streams, states[name] = block(x, streams, state=inner, key=at, **side)
        return x, streams, None if state is None else states

    def init_streams(self, x) -> dict[str, Any]:
        """What flows between the layers beside x, by name."""
        return {name: leaf for block in self.blocks().values() for name, leaf in block.mixer.init_streams(x).items()}

    def init_state(self, batch, max_length=None, dtype=None) -> dict[str, BlockState]:
        """The empty state of each block, by name."""
        return {name: block.init_state(batch, max_length, dtype) for name, block in self.blocks().items()}

    def flops(self, batch, length) -> int:
        """Forward model FLOPs."""
        return sum(block.flops(batch, length) for block in self.blocks().values())
