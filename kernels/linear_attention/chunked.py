r"""Chunks of tokens by matrix products: what accelerators are built for.

`inside.py` says what a chunk's tokens give each other and what they do to a state. What they write is a product of matrices, the
states at the starts of chunks follow from each other by `S' = decay * S + written`, and what they read is a product again: of all
that, only the recurrence of states is sequential. A few chunks at a time, a block, so that what lies between the steps stays small.
Backward: blocks in reverse, each differentiated by JAX from the state saved at its start.
Cost per head and chunk of c tokens: 2 c^2 (k + v) + 4 c k v multiply-adds; memory beyond the inputs one state per head and block.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..common import dispatch
from ..common.products import product
from . import inside


def forward(q, k, v, decays, state, *, scale, exclusive, chunk, save):
    """(o, last state, states at the starts of blocks [blocks, b, h, k, v] or None unless `save`)."""
    cut = _cut(q, v, decays, chunk)
    run = _one_block(_shared(decays), _precision(q, k, v), scale, exclusive)

    def step(s, rows):
        o, last = run(*rows, s)
        return last, (o.astype(v.dtype), s if save else None)

    last, (o, starts) = lax.scan(step, cut.together(state), jax.tree.map(cut.blocks, (q, k, v, decays)))
    return cut.tokens(o, v), cut.apart(last, state), cut.apart(starts, state) if save else None


def backward(q, k, v, decays, starts, d_o, d_last, *, scale, exclusive, chunk):
    """(dq, dk, dv, ddecays, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    cut = _cut(q, v, decays, chunk)
    run = _one_block(_shared(decays), _precision(q, k, v), scale, exclusive)

    def step(r, inputs):
        rows, d_rows, s = inputs
        _, pull = jax.vjp(run, *rows, s)
        *gradients, r = pull((d_rows.astype(s.dtype), r))
        return r, tuple(gradients)

    inputs = jax.tree.map(cut.blocks, (q, k, v, decays)), cut.blocks(d_o), cut.together(starts)
    r, gradients = lax.scan(step, cut.together(d_last), inputs, reverse=True)
    return *jax.tree.map(cut.tokens, gradients, (q, k, v, decays)), cut.apart(r, d_last)


class _Cut(NamedTuple):
    """Tokens [b, t, heads, ...] <-> blocks of chunks [blocks, z, c, width], z = chunks, rows, groups; and states alike."""

    length: int
    groups: int  # of heads that share queries, keys and their products: n, or all h
    chunk: int
    chunks: int  # in a block
    count: int  # of blocks

    def blocks(self, x):
        """[b, t, n or h, ...] -> [blocks, z, c, width], the heads of a group side by side."""
        groups, rest = min(x.shape[2], self.groups), self.count * self.chunks * self.chunk - self.length
        x = jnp.pad(x, [(0, rest if axis == 1 else 0) for axis in range(x.ndim)])  # such tokens write nothing and keep everything
        x = x.reshape(x.shape[0], -1, self.chunk, groups, math.prod(x.shape[2:]) // groups)
        return jnp.moveaxis(x, (1, 3), (0, 2)).reshape(self.count, -1, self.chunk, x.shape[-1])

    def tokens(self, x, like):
        """The inverse of `blocks`, to the shape of `like`."""
        groups = min(like.shape[2], self.groups)
        x = x.reshape(-1, like.shape[0], groups, self.chunk, x.shape[-1])
        return jnp.moveaxis(x, (0, 2), (1, 3)).reshape(like.shape[0], -1, *like.shape[2:])[:, : self.length]

    def together(self, state):
        """[..., b, h, k, v] -> [..., b groups, k, r v]."""
        *many, b, h, k, v = state.shape
        x = state.reshape(*many, b * self.groups, h // self.groups, k, v)
        return jnp.moveaxis(x, -3, -2).reshape(*many, b * self.groups, k, -1)

    def apart(self, state, like):
        """The inverse of `together`, to the last axes of `like`."""
        b, h, k, v = like.shape
        x = state.reshape(*state.shape[:-1], h // self.groups, v)
        return jnp.moveaxis(x, -2, -3).reshape(*state.shape[:-3], b, h, k, v)


def block(q, v, chunk):
    """Tokens between saved states: some chunks, spread evenly over the blocks."""
    chunks, most = -(-q.shape[1] // chunk), 32
    if dispatch.on_cpu():  # a block's arrays stay in the cache: half a megabyte of float32 each, and no more than 16 chunks
        numbers = v.shape[0] * v.shape[2] * max(q.shape[3], v.shape[3]) * chunk
        most = min(max(2**17 // max(numbers, 1), 4), 16)
    blocks = -(-chunks // most)
    return chunk * -(-chunks // blocks)


def _cut(q, v, decays, chunk):
    length, tokens = q.shape[1], block(q, v, chunk)
    return _Cut(length, q.shape[2] if _shared(decays) else v.shape[2], chunk, tokens // chunk, -(-length // tokens))


def _shared(decays):
    """Whether the heads of a group have the same products of queries and keys, up to a factor."""
    return decays.value is None and (decays.key is None or decays.key.ndim == 3)


def _one_block(shared, precision, scale, exclusive):
    dot = functools.partial(product, precision=precision)

    def run(q, k, v, decays, s):
        """(o, the state after the block), both in the state's dtype."""
        q, k, v, decays = jax.tree.map(lambda x: x.astype(s.dtype), (q, k, v, decays))
        q, k = (jnp.repeat(x, v.shape[0] // x.shape[0], axis=0) for x in (q, k))
        parts = (inside.by_head if shared else inside.by_channel)(dot, q, k, v, decays, exclusive)
        by_chunk = lambda x: x.reshape(-1, s.shape[0], *x.shape[1:])
        written = dot("zck,zcv->zkv", parts.keys, parts.values)
        if parts.decay is None:
            last, before = _sums(by_chunk(written), s)
        else:
            last, before = _states(by_chunk(parts.decay), by_chunk(written), s)
        read = dot("zck,zkv->zcv", parts.reads, before.reshape(written.shape))
        return scale * parts.output(read), last

    return run


def _sums(written, s):
    """The last of S_{n+1} = S_n + written_n, and all before it, as one product: for a few chunks faster than a loop over them."""
    terms = jnp.concatenate([s[None], written]).reshape(len(written) + 1, -1)
    lower = jnp.asarray(np.tri(len(terms)), s.dtype)
    states = product("nm,mx->nx", lower, terms, lax.Precision.HIGHEST).reshape(-1, *s.shape)  # states keep all their digits
    return states[-1], states[:-1]


@jax.custom_vjp
def _states(decay, written, s):
    """The last of S_{n+1} = decay_n * S_n + written_n, and all before it."""
    return lax.scan(lambda s, x: (x[0] * s + x[1], s), s, (decay, written))


def _states_forward(decay, written, s):
    last, before = _states(decay, written, s)
    return (last, before), (decay, before)


def _states_backward(residuals, cotangents):
    """R_n = decay_n * R_{n+1} + dS_n: R_{n+1} is the gradient of what chunk n wrote. JAX's own rule stacks each term once more."""
    decay, before = residuals
    first, after = lax.scan(lambda r, x: (x[0] * r + x[1], r), cotangents[0], (decay, cotangents[1]), reverse=True)
    _, to_decay = jax.vjp(lambda x: inside.spread(x, before.shape), decay)
    return *to_decay(before * after), after, first


_states.defvjp(_states_forward, _states_backward)


def _precision(*arrays):
    """Products of float32 must not be rounded to TF32 or bfloat16; those of narrower inputs may, their inputs were already."""
    return lax.Precision.HIGHEST if jnp.result_type(*arrays).itemsize >= 4 else lax.Precision.DEFAULT
