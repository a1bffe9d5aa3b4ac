"""Chunkwise form: all chunks of a row advance together, for devices on which every step of a loop is a kernel launch.

          chunk 1          chunk 2          chunk 3
    1.   0 --> S_1        0 --> S_2        0 --> S_3       c steps: each chunk's transition (product of decays, state from zero)
    2.   h_0  ----------> h_c -----------> h_2c            n steps: the inter-chunk recurrence, the state before each chunk
    3.   h_0 --> h        h_c --> h        h_2c --> h      c steps: every token, from the true state before its chunk

For prefix sums this is called reduce-then-scan. In steps 1 and 3 the chunks are rows of c tokens, given to the recurrent form.
Cost: 2 c + n steps instead of t, with c near sqrt(t / 2); O(b t d) time, a and b are read twice. Every h is the result of the plain
recurrence, without divisions or logarithms; the product of |a| over a chunk must not overflow.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma
from seqzoo.kernels.linear_recurrence import recurrent
from seqzoo.kernels.linear_recurrence.decay import DECAY, KEEP, Decay


def forward(decay: Decay, b: Array, initial: Array) -> tuple[Array, Array]:
    """As `recurrent.forward`."""
    chunk = chunk_size(b.shape[1])
    decays, b_chunks = split_decay(decay, chunk, b.shape), split_chunks(b, chunk)
    product, added = recurrent.state_transition(decays, b_chunks, initial.dtype)
    h, last = recurrent.forward(decays, b_chunks, propagate_states(product, added, initial))
    return join_chunks(h, b.shape), last.reshape(b.shape[0], -1, b.shape[2])[:, -1]


def backward(decay: Decay, h: Array, initial: Array, dh: Array, dlast: Array) -> tuple[Array, Array, Array]:
    """As `recurrent.backward`: the same three steps with gradients, from the last chunk to the first."""
    chunk = chunk_size(h.shape[1])
    decays, h_chunks, dh_chunks = split_decay(decay, chunk, h.shape), split_chunks(h, chunk), split_chunks(dh, chunk)
    product, added = recurrent.gradient_transition(decays, dh_chunks, dlast.dtype)
    d_after = propagate_states(product, added, dlast, reverse=True)
    ends = h[:, chunk - 1 : h.shape[1] - 1 : chunk].astype(initial.dtype)
    before = jnp.concatenate([initial[:, None], ends], axis=1).reshape(added.shape)
    da, db, dinitial = recurrent.backward(decays, h_chunks, before, dh_chunks, d_after)
    if not decay.time_invariant:
        da = join_chunks(da, h.shape)
    elif decay.values.shape[0] > 1:
        da = jnp.sum(join_chunks(da, added.reshape(h.shape[0], -1, h.shape[2]).shape), axis=1, keepdims=True)
    return da, join_chunks(db, h.shape), dinitial.reshape(h.shape[0], -1, h.shape[2])[:, 0]


def propagate_states(product: Array, added: Array, initial: Array, reverse: bool = False) -> Array:
    """Inter-chunk recurrence: the state before each chunk, s_0 = initial, s_{i+1} = product_i s_i + added_i.

    Args:
      product, added: [b n, ...], the transitions of the n chunks of each row, in order.
      initial: [b, ...].
      reverse: from the last chunk to the first.
    Returns: [b n, ...].
    """
    product, added = (x.reshape(initial.shape[0], -1, *initial.shape[1:]) for x in (product, added))
    count = product.shape[1]

    def step(i, carry):
        state, states = carry
        i = count - 1 - i if reverse else i
        return apply_transition(state, (get_step(product, i), get_step(added, i))), set_step(states, state, i)

    _, states = lax.fori_loop(0, count, step, (initial, zeros_like_vma(added)))
    return states.reshape(-1, *initial.shape[1:])


def apply_transition(h: Array, transition: tuple[Array, Array]) -> Array:
    """The state after a stretch of tokens; what it forgets (a product of exactly 0) is 0 whatever it was, also infinite."""
    product, added = transition
    return product * jnp.where(product == 0, jnp.zeros_like(h), h) + added


def chunk_size(length: int) -> int:
    """Tokens per chunk: near sqrt(length / 2), where the number of steps 2 c + length / c is smallest."""
    return max(1, math.isqrt(length // 2))


def split_chunks(x: Array, chunk: int, fill: float = 0) -> Array:
    """Reshapes [b, t, ...] to [b n, chunk, ...], every chunk a row of its own; the last one is padded with `fill`."""
    missing = -x.shape[1] % chunk
    x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)), constant_values=fill) if missing else x
    return x.reshape(-1, chunk, *x.shape[2:])


def split_decay(decay: Decay, chunk: int, shape: tuple[int, ...]) -> Decay:
    """The decays of the chunks as rows of their own; `shape` is b's. The filled tokens of the last chunk keep the state."""
    batch, length, _ = shape
    mask = decay.mask
    if mask is None and length % chunk:
        mask = jnp.full((batch, length), DECAY, jnp.int8)
    values = decay.values
    if not decay.time_invariant:
        values = split_chunks(values, chunk)
    elif values.shape[0] > 1:
        values = jnp.repeat(values, -(-length // chunk), axis=0)
    return Decay(values, None if mask is None else split_chunks(mask, chunk, fill=KEEP), decay.log)


def join_chunks(chunks: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `split_chunks`: [b n, chunk, d] to shape [b, t, d], without the filled tokens."""
    return chunks.reshape(shape[0], -1, shape[2])[:, : shape[1]]
