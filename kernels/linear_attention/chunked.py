r"""Chunks of tokens by matrix products: best on accelerators, and on CPUs for wide states with at most one decay per head.

`inside.py` says what a chunk's tokens give each other and what they do to a state. What they write is a product of matrices, the
states at the starts of chunks follow from each other by `S' = decay * S + written`, and what they read is a product again: of all
that, only the recurrence of states is sequential. A few chunks at a time, a block, so that what lies between the steps stays small.
Backward: blocks in reverse, each differentiated by JAX from the state saved at its start.
Cost per head and chunk of c tokens: 2 c^2 (k + v) + 4 c k v multiply-adds; memory beyond the inputs one state per head and block.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..common import dispatch
from ..common.varying import zeros
from . import inside
from .grouping import merge, split


def forward(q, k, v, decays, state, *, scale, exclusive, chunk, save):
    """(o, last state, states at the starts of blocks [blocks, b, h, k, v] or None unless `save`)."""
    length = q.shape[1]
    block, count = _blocks(length, chunk)
    inputs = _pad((q, k, v, decays), block * count)
    run = _one_block(_precision(q, k, v), scale, exclusive, chunk)

    def step(j, carry):
        s, o, starts = carry
        starts = None if starts is None else lax.dynamic_update_index_in_dim(starts, s, j, axis=0)
        rows, s = run(*_slices(inputs, j, block), s)
        return s, _put(o, rows, j), starts

    starts = zeros(state, (count, *state.shape)) if save else None
    state, o, starts = lax.fori_loop(0, count, step, (state, zeros(inputs[2]), starts))
    return o[:, :length], state, starts


def backward(q, k, v, decays, starts, d_o, d_last, *, scale, exclusive, chunk):
    """(dq, dk, dv, ddecays, dstate), in the inputs' dtypes, from the cotangents of o and the last state."""
    length = q.shape[1]
    block, count = _blocks(length, chunk)
    run = _one_block(_precision(q, k, v), scale, exclusive, chunk)
    *inputs, d_o = _pad((q, k, v, decays, d_o), block * count)

    def step(m, carry):
        r, gradients = carry
        j = count - 1 - m
        s = lax.dynamic_index_in_dim(starts, j, axis=0, keepdims=False)
        *rows, d_rows = _slices((*inputs, d_o), j, block)
        _, pull = jax.vjp(run, *rows, s)
        *rows, r = pull((d_rows.astype(s.dtype), r))
        return r, jax.tree.map(lambda x, y: _put(x, y, j), gradients, tuple(rows))

    r, gradients = lax.fori_loop(0, count, step, (d_last, jax.tree.map(zeros, tuple(inputs))))
    return *jax.tree.map(lambda x: x[:, :length], gradients), r


def _one_block(precision, scale, exclusive, chunk):
    def dot(spec, x, y):
        return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=x.dtype)

    def run(q, k, v, decays, s):
        """(o [b, block, h, v], the state after the block), both in the state's dtype."""
        chunks = lambda x: jnp.moveaxis(x.astype(s.dtype).reshape(x.shape[0], -1, chunk, *x.shape[2:]), 3, 1)
        groups = q.shape[2]
        q, k, v, decays = jax.tree.map(chunks, (q, k, v, decays))  # [b, heads, m, c, width]
        if decays.value is None and (decays.key is None or decays.key.ndim == 4):
            g = None if decays.key is None else split(decays.key, groups)
            parts = inside.by_head(dot, q, k, split(v, groups), g, exclusive)
        else:
            q, k = (jnp.repeat(x, v.shape[1] // groups, axis=1) for x in (q, k))  # scores are per head
            parts = inside.by_channel(dot, q, k, v, *decays, exclusive)
        written = dot("bnmck,bnrmcv->mbnrkv", parts.keys, parts.values)
        decay = jnp.ones_like(written[..., :1, :1]) if parts.decay is None else jnp.moveaxis(parts.decay, 3, 0)
        last, before = lax.scan(lambda s, x: (x[0] * s + x[1], s), split(s, q.shape[1]), (decay, written))
        read = dot("bnmck,mbnrkv->bnrmcv", parts.reads, before)
        o = merge(parts.o + (read if parts.fade is None else parts.fade * read))
        return scale * jnp.moveaxis(o.reshape(*o.shape[:2], -1, o.shape[-1]), 1, 2), merge(last)

    return run


def _blocks(length, chunk):
    """(tokens per block, number of blocks): whole chunks, spread evenly."""
    chunks = -(-length // chunk)
    count = -(-chunks // (4 if dispatch.on_cpu() else 32))  # on a CPU a block's work stays in the cache
    return chunk * -(-chunks // count), count


def _slices(inputs, j, block):
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, j * block, block, axis=1), inputs)


def _put(x, rows, j):
    return lax.dynamic_update_slice_in_dim(x, rows.astype(x.dtype), j * rows.shape[1], axis=1)


def _precision(*arrays):
    """Products of float32 must not be rounded to TF32 or bfloat16; those of narrower inputs may, their inputs were already."""
    return lax.Precision.HIGHEST if jnp.result_type(*arrays).itemsize >= 4 else lax.Precision.DEFAULT


def _pad(inputs, length):
    """The arrays with zero rows up to `length`: a zero key writes nothing and a zero log decay keeps everything."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, length - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)]), inputs)
