r"""Chunkwise form: matrix products over chunks of tokens, which is what accelerators are built for.

    tokens   [ chunk 1 | chunk 2 | chunk 3 | chunk 4 ][ chunk 5 | chunk 6 | ...        c tokens in a chunk
             [              block 1                 ][         block 2 ...            a few chunks in a block

    1. intra-chunk (`intra_chunk.py`), all chunks of a block at once: scores between the tokens of a chunk, and its update
    2. inter-chunk (`inter_chunk.py`), chunk after chunk: the state before each chunk
    3. outputs, all chunks of a block at once:  o = scores v + (decayed q) S

Only step 2 is sequential. A `lax.scan` runs over blocks, so that memory for what is between the steps stays small. Backward: blocks
in reverse, each computed again from the states that `checkpoint_interval` chose to save (and u) and differentiated by JAX.
Cost per head and chunk: 2 c^2 (k + v) + 4 c k v multiply-adds, about twice that with a low-rank term, and its inverse; memory
beyond the inputs: one state per head and block (or chunk, with a low-rank term on CPUs where states are small), and u.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..common import implementations, xla_cpu
from ..common.vma import zeros_like_vma
from . import inter_chunk, intra_chunk, recurrent


def forward(q, k, v, transition, state, *, scale, read_before_write, chunk_size, resets, output_dtype, save):
    """Computes (o, last state, residuals).

    Residuals, None unless `save`: states at the starts of every `checkpoint_interval` tokens [..., b, h, k, v], and u
    [b, t, h, v], None without a low-rank term.
    """
    chunking = Chunking.of(q, v, transition, chunk_size)
    block = block_function(q, k, v, transition, scale, read_before_write, resets)
    inputs = jax.tree.map(chunking.pad, (q, k, v, transition))
    per_chunk = checkpoint_interval(q, v, transition, chunk_size) == chunk_size
    us = None if transition.a is None or not save else zeros_like_vma(inputs[2], dtype=state.dtype)

    def step(carry, i):
        s, o, us = carry
        inputs_i = jax.tree.map(lambda x: chunking.get(x, i), inputs)
        o_i, last, states, u = block(*inputs_i, s=s, residuals=inter_chunk.Residuals())
        checkpoints = states if per_chunk else s[None]
        return (last, chunking.set(o, o_i, i), us if us is None else chunking.set(us, u, i)), checkpoints if save else None

    start = chunking.group_heads(state), zeros_like_vma(inputs[2], dtype=output_dtype), us
    (last, o, us), checkpoints = lax.scan(step, start, jnp.arange(chunking.blocks))
    o, last = o[:, : chunking.length], chunking.split_heads(last, state)
    if checkpoints is None:
        return o, last, None
    checkpoints = chunking.split_heads(checkpoints.reshape(-1, *checkpoints.shape[2:]), state)
    return o, last, (checkpoints, us if us is None else us[:, : chunking.length])


def recurrent_forward(q, k, v, transition, state, *, scale, read_before_write, chunk_size, resets, output_dtype, save):
    """`recurrent.forward` with the residuals of `backward`: for training on CPUs, where only gradients have enough arithmetic for
    matrix products to pay."""
    interval = checkpoint_interval(q, v, transition, chunk_size)
    settings = {
        "scale": scale,
        "read_before_write": read_before_write,
        "chunk_size": interval,
        "resets": resets,
        "output_dtype": output_dtype,
    }
    return recurrent.forward(q, k, v, transition, state, **settings, save=save)


def backward(q, k, v, transition, residuals, d_o, d_last, *, scale, read_before_write, chunk_size, resets, output_dtype):
    """Computes (dq, dk, dv, dtransition, dstate), in the inputs' dtypes, from the gradients of o and of the last state."""
    chunking, (checkpoints, u) = Chunking.of(q, v, transition, chunk_size), residuals
    block = block_function(q, k, v, transition, scale, read_before_write, resets)
    inputs, others = jax.tree.map(chunking.pad, ((q, k, v, transition), (d_o, u)))

    def step(carry, i_and_states):
        (r, gradients), (i, states) = carry, i_and_states
        inputs_i, others_i = jax.tree.map(lambda x: chunking.get(x, i), (inputs, others))
        (do_i, u), states = xla_cpu.materialise((others_i, states))
        saved = inter_chunk.Residuals(states if len(states) > 1 else None, u)
        _, pullback = jax.vjp(lambda *inputs_and_s: block(*inputs_and_s, residuals=saved)[:2], *inputs_i, states[0])
        *gradients_i, r = pullback((do_i.astype(r.dtype), r))
        return (r, jax.tree.map(lambda whole, x: chunking.set(whole, x, i), gradients, tuple(gradients_i))), None

    checkpoints = chunking.group_heads(checkpoints)
    missing = -len(checkpoints) % chunking.blocks  # of chunks that are padding
    checkpoints = jnp.pad(checkpoints, ((0, missing), (0, 0), (0, 0), (0, 0)))
    checkpoints = checkpoints.reshape(chunking.blocks, -1, *checkpoints.shape[1:])
    start = chunking.group_heads(d_last), jax.tree.map(zeros_like_vma, inputs)
    (r, gradients), _ = lax.scan(step, start, (jnp.arange(chunking.blocks), checkpoints), reverse=True)
    return *jax.tree.map(lambda x: x[:, : chunking.length], gradients), chunking.split_heads(r, d_last)


class Chunking(NamedTuple):
    """A sequence as blocks of chunks, and the reshaping of tokens [b, t, heads, ...] to chunks [z, c, width].

    z counts the chunks of a block, batch rows and groups. The heads of a group are next to each other in the width.
    """

    length: int
    groups: int  # n if the heads of a group share the products of queries and keys, else h
    chunk_size: int
    chunks: int  # in a block
    blocks: int

    @classmethod
    def of(cls, q, v, transition, chunk_size) -> "Chunking":
        """The chunking of these inputs."""
        length, tokens = q.shape[1], block_size(q, v, chunk_size)
        groups = q.shape[2] if shares_scores(transition) else v.shape[2]
        return cls(length, groups, chunk_size, tokens // chunk_size, -(-length // tokens))

    def pad(self, x):
        """Pads tokens to whole blocks with zeros, which write nothing and decay nothing."""
        missing = self.blocks * self.chunks * self.chunk_size - self.length
        return jnp.pad(x, [(0, missing if axis == 1 else 0) for axis in range(x.ndim)])

    def get(self, x, i):
        """Block i of [b, t, n or h, ...] as chunks [z, c, width]."""
        groups, tokens = min(x.shape[2], self.groups), self.chunks * self.chunk_size
        x = lax.dynamic_slice_in_dim(x, i * tokens, tokens, axis=1, allow_negative_indices=False)
        x = x.reshape(x.shape[0], self.chunks, self.chunk_size, groups, math.prod(x.shape[2:]) // groups)
        return jnp.moveaxis(x, (1, 3), (0, 2)).reshape(-1, self.chunk_size, x.shape[-1])

    def set(self, whole, x, i):
        """The inverse of `get`: `whole` with the chunks x as block i."""
        groups, tokens = min(whole.shape[2], self.groups), self.chunks * self.chunk_size
        x = jnp.moveaxis(x.reshape(self.chunks, whole.shape[0], groups, *x.shape[1:]), (0, 2), (1, 3))
        x = x.reshape(whole.shape[0], tokens, *whole.shape[2:]).astype(whole.dtype)
        return lax.dynamic_update_slice_in_dim(whole, x, i * tokens, axis=1, allow_negative_indices=False)

    def group_heads(self, state):
        """[..., b, h, k, v] -> [..., b groups, k, r v]."""
        *leading, b, h, k, v = state.shape
        x = state.reshape(*leading, b * self.groups, h // self.groups, k, v)
        return jnp.moveaxis(x, -3, -2).reshape(*leading, b * self.groups, k, -1)

    def split_heads(self, state, like):
        """The inverse of `group_heads`, to the last axes of `like`."""
        b, h, k, v = like.shape
        x = state.reshape(*state.shape[:-1], h // self.groups, v)
        return jnp.moveaxis(x, -2, -3).reshape(*state.shape[:-3], b, h, k, v)


def shares_scores(transition) -> bool:
    """True if the heads of a group have the same products of queries and keys, up to a factor."""
    key_decay = transition.key_decay
    return transition.value_decay is None and transition.a is None and (key_decay is None or key_decay.ndim == 3)


def block_size(q, v, chunk_size) -> int:
    """Tokens in a block: up to 32 chunks, evenly distributed over the blocks."""
    chunks, most = -(-q.shape[1] // chunk_size), 32
    if implementations.on_cpu():  # a block's arrays stay in the cache: half a megabyte of float32 each, and no more than 16 chunks
        numbers = v.shape[0] * v.shape[2] * max(q.shape[3], v.shape[3]) * chunk_size
        most = min(max(2**17 // max(numbers, 1), 4), 16)
    blocks = -(-chunks // most)
    return chunk_size * -(-chunks // blocks)


def checkpoint_interval(q, v, transition, chunk_size) -> int:
    """Tokens between saved states: a block.

    On CPUs a chunk with a low-rank term, if the states take no more memory than q, k, v and u: the backward pass then need not
    compute the states of the chunks again. Accelerators have less memory and compute them for little.
    """
    width, value_width = q.shape[3], v.shape[3]
    small = width * value_width <= 2 * chunk_size * (width + value_width)
    return chunk_size if implementations.on_cpu() and transition.a is not None and small else block_size(q, v, chunk_size)


def block_function(q, k, v, transition, scale, read_before_write, resets):
    """The function that computes one block: (q, k, v, transition, s, residuals) -> (o, last state, states, u)."""
    # Products of float32 must not be rounded to TF32 or bfloat16; those of narrower inputs may, their inputs were already.
    wide = jnp.result_type(q, k, v).itemsize >= 4
    einsum = functools.partial(xla_cpu.product, precision=lax.Precision.HIGHEST if wide else lax.Precision.DEFAULT)
    if shares_scores(transition):
        intra = intra_chunk.head_decay
    else:
        intra = intra_chunk.channel_decay if transition.a is None else intra_chunk.low_rank

    def block(q, k, v, transition, s, residuals):
        q, k, v, transition = jax.tree.map(lambda x: x.astype(s.dtype), (q, k, v, transition))
        per_head = lambda x: None if x is None else jnp.repeat(x, v.shape[0] // x.shape[0], axis=0)
        q, k, transition = per_head(q), per_head(k), transition._replace(a=per_head(transition.a), b=per_head(transition.b))
        split_chunks = functools.partial(jax.tree.map, lambda x: x.reshape(-1, s.shape[0], *x.shape[1:]))
        merge_chunks = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))

        borders = intra_chunk.find_borders(transition) if resets and transition.a is None else None
        chunks = intra(einsum, q, k, v, transition, read_before_write, borders)
        update = None if chunks.write is None else einsum("zck,zcv->zkv", *chunks.write)
        residuals = residuals._replace(u=split_chunks(residuals.u))
        last, states, u = inter_chunk.propagate_states(
            *split_chunks((chunks.decay, chunks.low_rank, update)), s=s, residuals=residuals
        )
        before = None if borders is None else borders.before
        read = intra_chunk.select(before, einsum("zck,zkv->zcv", intra_chunk.select(before, chunks.queries), merge_chunks(states)))
        return scale * chunks.output(read, merge_chunks(u)), last, states, merge_chunks(u)

    return block
