r"""Chunks of tokens by matrix products: what accelerators are built for.

`inside.py` says what a chunk's tokens give each other and what they do to a state. What they write is a product of matrices,
`states.py` says how the states at the starts of chunks follow from each other, and what they read is a product again: of all that,
only the recurrence of states is sequential. A few chunks at a time, a block, so that what lies between the steps stays small.
Backward: blocks in reverse, each differentiated by JAX from the states that `between` chose to save, and its u.
Cost per head and chunk of c tokens: 2 c^2 (k + v) + 4 c k v multiply-adds, about twice that with a low-rank term, and its inverse;
memory beyond the inputs one state per head and block (beside a low-rank term on CPUs, where small, per chunk), and u.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..common import implementations
from ..common.vma import zeros_like_vma
from ..common.xla_cpu import product
from . import inside, states


def forward(q, k, v, transition, state, *, scale, exclusive, chunk, save):
    """(o, last state, what `backward` needs of both or None unless `save`): states at the starts of every `between` tokens
    [..., b, h, k, v], and u [b, t, h, v] or None without a low-rank term."""
    cut = _cut(q, v, transition, chunk)
    run = _one_block(_shared(transition), _precision(q, k, v), scale, exclusive)
    inputs = jax.tree.map(cut.filled, (q, k, v, transition))
    every = between(q, v, transition, chunk)
    us = None if transition.a is None or not save else zeros_like_vma(inputs[2], dtype=state.dtype)

    def step(carry, i):
        s, o, us = carry
        o_i, last, before, u = run(*jax.tree.map(lambda x: cut.block(x, i), inputs), states.Known(), s)
        starts = before if every == chunk else s[None]
        return (last, cut.put(o, o_i, i), us if us is None else cut.put(us, u, i)), starts if save else None

    (last, o, us), starts = lax.scan(step, (cut.together(state), zeros_like_vma(inputs[2]), us), jnp.arange(cut.count))
    real = lambda x: None if x is None else x[:, : cut.length]
    kept = (cut.apart(starts.reshape(-1, *starts.shape[2:]), state), real(us)) if save else None
    return real(o), cut.apart(last, state), kept


def backward(q, k, v, transition, kept, d_o, d_last, *, scale, exclusive, chunk):
    """(dq, dk, dv, dtransition, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    cut, (starts, u) = _cut(q, v, transition, chunk), kept
    run = _one_block(_shared(transition), _precision(q, k, v), scale, exclusive)
    inputs, others = jax.tree.map(cut.filled, ((q, k, v, transition), (d_o, u)))

    def step(carry, block):
        (r, gradients), (i, s) = carry, block
        rows, of_others = jax.tree.map(lambda x: cut.block(x, i), (inputs, others))
        # Held together, or XLA on CPUs copies them once for every shape that they are read in.
        (d_rows, u), s = lax.optimization_barrier((of_others, s))
        known = states.Known(s if len(s) > 1 else None, u)
        _, pull = jax.vjp(lambda *rows_and_s: run(*rows_and_s[:-1], known, rows_and_s[-1])[:2], *rows, s[0])
        *of_block, r = pull((d_rows.astype(s.dtype), r))
        return (r, jax.tree.map(lambda whole, x: cut.put(whole, x, i), gradients, tuple(of_block))), None

    starts = cut.together(starts)
    rest = -len(starts) % cut.count  # of chunks without tokens
    starts = jnp.pad(starts, ((0, rest), (0, 0), (0, 0), (0, 0))).reshape(cut.count, -1, *starts.shape[1:])
    carry = cut.together(d_last), jax.tree.map(zeros_like_vma, inputs)
    (r, gradients), _ = lax.scan(step, carry, (jnp.arange(cut.count), starts), reverse=True)
    return *jax.tree.map(lambda x: x[:, : cut.length], gradients), cut.apart(r, d_last)


class _Cut(NamedTuple):
    """Tokens [b, t, heads, ...] <-> blocks of chunks [z, c, width], z = chunks, rows, groups; and states alike."""

    length: int
    groups: int  # of heads that share queries, keys and their products: n, or all h
    chunk: int
    chunks: int  # in a block
    count: int  # of blocks

    def filled(self, x):
        """With tokens up to whole blocks, which write nothing and keep everything."""
        rest = self.count * self.chunks * self.chunk - self.length
        return jnp.pad(x, [(0, rest if axis == 1 else 0) for axis in range(x.ndim)])

    def block(self, x, i):
        """Block i of [b, t, n or h, ...] -> [z, c, width], the heads of a group side by side."""
        groups, tokens = min(x.shape[2], self.groups), self.chunks * self.chunk
        x = lax.dynamic_slice_in_dim(x, i * tokens, tokens, axis=1, allow_negative_indices=False)
        x = x.reshape(x.shape[0], self.chunks, self.chunk, groups, math.prod(x.shape[2:]) // groups)
        return jnp.moveaxis(x, (1, 3), (0, 2)).reshape(-1, self.chunk, x.shape[-1])

    def put(self, whole, x, i):
        """The inverse of `block`: with x as block i."""
        groups, tokens = min(whole.shape[2], self.groups), self.chunks * self.chunk
        x = jnp.moveaxis(x.reshape(self.chunks, whole.shape[0], groups, *x.shape[1:]), (0, 2), (1, 3))
        x = x.reshape(whole.shape[0], tokens, *whole.shape[2:]).astype(whole.dtype)
        return lax.dynamic_update_slice_in_dim(whole, x, i * tokens, axis=1, allow_negative_indices=False)

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


def between(q, v, transition, chunk):
    """Tokens between saved states: a block, or beside a low-rank term a chunk, which saves finding the states of its chunks again,
    where they take no more memory than q, k, v and u. Not on accelerators, which have less of it, and products for little."""
    width, value_width = q.shape[3], v.shape[3]
    few = width * value_width <= 2 * chunk * (width + value_width)
    return chunk if implementations.on_cpu() and transition.a is not None and few else _block(q, v, chunk)


def _block(q, v, chunk):
    """Tokens in a block: some chunks, spread evenly over the blocks."""
    chunks, most = -(-q.shape[1] // chunk), 32
    if implementations.on_cpu():  # a block's arrays stay in the cache: half a megabyte of float32 each, and no more than 16 chunks
        numbers = v.shape[0] * v.shape[2] * max(q.shape[3], v.shape[3]) * chunk
        most = min(max(2**17 // max(numbers, 1), 4), 16)
    blocks = -(-chunks // most)
    return chunk * -(-chunks // blocks)


def _cut(q, v, transition, chunk):
    length, tokens = q.shape[1], _block(q, v, chunk)
    return _Cut(length, q.shape[2] if _shared(transition) else v.shape[2], chunk, tokens // chunk, -(-length // tokens))


def _shared(transition):
    """Whether the heads of a group have the same products of queries and keys, up to a factor."""
    return transition.value is None and transition.a is None and (transition.key is None or transition.key.ndim == 3)


def _one_block(shared, precision, scale, exclusive):
    dot = functools.partial(product, precision=precision)

    def run(q, k, v, transition, known, s):
        """(o, the state after the block, those before its chunks, u), all in the state's dtype."""
        q, k, v, transition = jax.tree.map(lambda x: x.astype(s.dtype), (q, k, v, transition))
        per_head = lambda x: None if x is None else jnp.repeat(x, v.shape[0] // x.shape[0], axis=0)
        q, k, transition = per_head(q), per_head(k), transition._replace(a=per_head(transition.a), b=per_head(transition.b))
        form = inside.by_head if shared else inside.by_channel if transition.a is None else inside.low_rank
        parts = form(dot, q, k, v, transition, exclusive)
        by_chunk = functools.partial(jax.tree.map, lambda x: x.reshape(-1, s.shape[0], *x.shape[1:]))
        at_once = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))
        written = None if parts.written is None else dot("zck,zcv->zkv", *parts.written)
        known = known._replace(u=by_chunk(known.u))
        last, before, u = states.follow(*by_chunk((parts.decay, parts.low_rank, written)), known, s)
        reads = dot("zck,zkv->zcv", parts.reads, at_once(before))
        return scale * parts.output(reads, at_once(u)), last, before, at_once(u)

    return run


def _precision(*arrays):
    """Products of float32 must not be rounded to TF32 or bfloat16; those of narrower inputs may, their inputs were already."""
    return lax.Precision.HIGHEST if jnp.result_type(*arrays).itemsize >= 4 else lax.Precision.DEFAULT
