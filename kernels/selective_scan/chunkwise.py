"""Two levels, for devices on which every step of a loop is a kernel launch: all chunks advance together.

The same composition as `linear_recurrence.chunkwise`: chunks become rows, are run from zero for their summaries (exp(A sum dt),
final state), the summaries are composed one after the other, and the loop runs all chunks again from their true initial states. The
sum of dt over a chunk only grows, so its exponential is as exact as the product of the decays.
"""

from jax import Array

from seqzoo.kernels.linear_recurrence.chunkwise import chunk_size, compose, fold, unfold
from seqzoo.kernels.selective_scan import recurrent


def forward(g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array, Array]:
    """As `recurrent.forward`; the saved states are those of the chunks' rows, [b chunks, chunk / 16, n, d]."""
    g_rows, u_rows, b_rows, c_rows = (fold(x, _chunk(g.shape[1])) for x in (g, u, B, C))
    starts = compose(*recurrent.summary(g_rows, u_rows, A, b_rows), initial)
    y, last, saved = recurrent.forward(g_rows, u_rows, A, b_rows, c_rows, starts)
    return unfold(y, u.shape), last.reshape(initial.shape[0], -1, *initial.shape[1:])[:, -1], saved


def backward(g: Array, u: Array, A: Array, B: Array, C: Array, saved: Array, dy: Array, dlast: Array) -> tuple[Array, ...]:
    """As `recurrent.backward`; the summaries are of what reaches a chunk's initial state from within it, composed from the end."""
    g_rows, u_rows, b_rows, c_rows, dy_rows = (fold(x, _chunk(g.shape[1])) for x in (g, u, B, C, dy))
    behind = compose(*recurrent.summary_back(g_rows, A, c_rows, dy_rows), dlast, reverse=True)
    dg, du, dA, dB, dC, dinitial = recurrent.backward(g_rows, u_rows, A, b_rows, c_rows, saved, dy_rows, behind)
    dg, du, dB, dC = (unfold(x, like.shape) for x, like in ((dg, g), (du, u), (dB, B), (dC, C)))
    return dg, du, dA, dB, dC, dinitial.reshape(dlast.shape[0], -1, *dlast.shape[1:])[:, 0]


def _chunk(length: int) -> int:
    """`chunk_size` in whole blocks, once there is more than one."""
    chunk = chunk_size(length)
    return chunk if chunk <= recurrent.BLOCK else recurrent.blocks(chunk) * recurrent.BLOCK
