"""The cross-entropy behind a head, taken in pieces of time, so that logits [b, t, vocab] are never held whole."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import sharding


class TokenLosses(NamedTuple):
    """What a model says of each token's target."""

    cross_entropy: Array  # [b, t] at least float32, -log p(target) in nats
    correct: Array  # [b, t] bool, whether the target has the largest logit
    log_z: Array  # [b, t] as cross_entropy, the logarithm of the softmax's denominator


def token_losses(attend: Callable[[Array], Array], x: Array, targets: Array, chunk: int | None = None) -> TokenLosses:
    """cross_entropy = log_z - logit[target], log_z = log sum exp logits, logits = attend(x).

    Args:
      attend: the head, [..., d] -> [..., vocab], the same for every token; what it closes over gets its gradient.
      x: [b, t, d]. targets: [b, t] int32.
      chunk: at least 1, tokens of a row whose logits are there at once; the backward pass makes them again. None: all, kept.
    Cost: with chunks memory b chunk vocab, and in a training step a fourth matrix product of 2 b t d vocab beside the head's own
    three. Under a mesh that cuts time each device goes through chunks of its own piece.
    """
    if chunk is None:
        return _token_losses(attend, x, targets)
    batch, length = targets.shape
    pieces = sharding.plan("cross-entropy", b=batch, t=length).time_shards
    local = length // pieces
    chunk = min(chunk, local)
    count = -(-local // chunk)

    def cut(a):
        """[b, t, ...] -> [count, b, pieces, chunk, ...], padded at the end of each device's piece."""
        a = a.reshape(batch, pieces, local, *a.shape[2:])
        a = jnp.pad(a, [(0, 0), (0, 0), (0, count * chunk - local)] + [(0, 0)] * (a.ndim - 3))
        return jnp.moveaxis(a.reshape(batch, pieces, count, chunk, *a.shape[3:]), 2, 0)

    def joined(a):
        a = jnp.moveaxis(a, 0, 2).reshape(batch, pieces, count * chunk)
        return a[:, :, :local].reshape(batch, length)

    piece = jax.checkpoint(lambda x, targets: _token_losses(attend, x, targets))
    _, found = jax.lax.scan(lambda _, each: (None, piece(*each)), None, (cut(x), cut(targets)))
    return jax.tree.map(joined, found)


def _token_losses(attend, x, targets):
    logits = attend(x)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenLosses(log_z - picked, jnp.argmax(logits, axis=-1) == targets, log_z)
