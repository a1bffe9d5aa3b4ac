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
        batch, _, heads, width = v.shape
        groups, shared = q.shape[2], decays.value is None and (decays.key is None or decays.key.ndim == 3)
        if not shared:  # scores are per head
            q, k = (jnp.repeat(x, heads // groups, axis=2) for x in (q, k))
            groups = heads

        def chunks(x):  # [b, block, heads, ...] -> [z, heads per group, c, ...], z = chunks, rows, groups
            x = x.astype(s.dtype).reshape(batch, -1, chunk, *x.shape[2:])
            x = jnp.moveaxis(x, (1, 3), (0, 2))
            return x.reshape(x.shape[0] * batch * groups, -1, *x.shape[3:])

        q, k, v, decays = jax.tree.map(chunks, (q, k, v, decays))
        q, k = q[:, 0], k[:, 0]
        if shared:
            parts = inside.by_head(dot, q, k, v, decays.key, exclusive)
        else:
            parts = inside.by_channel(dot, q, k, v[:, 0], *jax.tree.map(lambda g: g[:, 0], decays), exclusive)
        by_chunk = lambda x: x.reshape(-1, batch * groups, *x.shape[1:])
        written = dot("zck,zrcv->zrkv", parts.keys, parts.values)
        decay = jnp.ones_like(written[..., :1, :1]) if parts.decay is None else parts.decay
        state = s.reshape(batch * groups, -1, *s.shape[2:])
        last, before = lax.scan(
            lambda s, x: (inside.spread(x[0], s.shape) * s + x[1], s), state, (by_chunk(decay), by_chunk(written))
        )
        read = dot("zck,zrkv->zrcv", parts.reads, before.reshape(written.shape))
        o = parts.o + (read if parts.fade is None else parts.fade * read)
        o = jnp.moveaxis(o.reshape(-1, batch, heads, chunk, width), (0, 2), (1, 3))
        return scale * o.reshape(batch, -1, heads, width), last.reshape(s.shape)

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
