"""Chunkwise form: all chunks of a row advance together, for devices on which every step of a loop is a kernel launch.

The three steps of `linear_recurrence/chunkwise.py`: the transition of each chunk (its decay exp(A sum dt), and its last state from
zero), the inter-chunk recurrence of these, and all chunks again, from the true state before each. The first and third give the
chunks to the recurrent form, as rows of their own. The sum of dt over a chunk only grows, so its exponential is as exact as the
product of the decays. Cost: about 2.8 sqrt(t) steps instead of t; O(b t d n) time, all inputs are read twice.
"""

from jax import Array

from seqzoo.kernels.linear_recurrence.chunkwise import chunk_size, join_chunks, propagate_states, split_chunks
from seqzoo.kernels.selective_scan import recurrent


def forward(g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array, Array]:
    """As `recurrent.forward`; the checkpoints are those of each chunk, [b chunks, chunk / 16, n, d]."""
    g_chunks, u_chunks, b_chunks, c_chunks = (split_chunks(x, _chunk_size(g.shape[1])) for x in (g, u, B, C))
    before = propagate_states(*recurrent.state_transition(g_chunks, u_chunks, A, b_chunks), initial)
    y, last, checkpoints = recurrent.forward(g_chunks, u_chunks, A, b_chunks, c_chunks, before)
    return join_chunks(y, u.shape), last.reshape(initial.shape[0], -1, *initial.shape[1:])[:, -1], checkpoints


def backward(g: Array, u: Array, A: Array, B: Array, C: Array, checkpoints: Array, dy: Array, dlast: Array) -> tuple[Array, ...]:
    """As `recurrent.backward`: the same three steps with gradients, from the last chunk to the first."""
    g_chunks, u_chunks, b_chunks, c_chunks, dy_chunks = (split_chunks(x, _chunk_size(g.shape[1])) for x in (g, u, B, C, dy))
    d_after = propagate_states(*recurrent.gradient_transition(g_chunks, A, c_chunks, dy_chunks), dlast, reverse=True)
    gradients = recurrent.backward(g_chunks, u_chunks, A, b_chunks, c_chunks, checkpoints, dy_chunks, d_after)
    dg, du, dA, dB, dC, dinitial = gradients
    dg, du, dB, dC = (join_chunks(x, like.shape) for x, like in ((dg, g), (du, u), (dB, B), (dC, C)))
    return dg, du, dA, dB, dC, dinitial.reshape(dlast.shape[0], -1, *dlast.shape[1:])[:, 0]


def _chunk_size(length: int) -> int:
    """As `chunk_size`, but a multiple of the tokens between checkpoints if it is more."""
    chunk = chunk_size(length)
    interval = recurrent.CHECKPOINT_INTERVAL
    return chunk if chunk <= interval else recurrent.count_blocks(chunk) * interval
