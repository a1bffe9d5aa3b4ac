"""The loop forward and chunks backward: best for training on CPUs, where gradients alone have the arithmetic to pay for chunks."""

from . import chunked, loop

backward = chunked.backward


def forward(q, k, v, transition, state, *, scale, exclusive, chunk, save):
    """As `loop.forward`, with what `chunked.backward` wants."""
    every = chunked.between(q, v, transition, chunk)
    return loop.forward(q, k, v, transition, state, scale=scale, exclusive=exclusive, chunk=every, save=save)
