"""The loop forward and chunks backward: best for training on CPUs, where gradients alone have the arithmetic to pay for chunks."""

from . import chunked, loop

backward = chunked.backward


def forward(q, k, v, decays, state, *, scale, exclusive, chunk, save):
    """As `loop.forward`, with the states that `chunked.backward` wants."""
    every = chunked.block(q, v, chunk)
    return loop.forward(q, k, v, decays, state, scale=scale, exclusive=exclusive, chunk=every, save=save)
