"""Cross-entropy after the head, chunked over time, so that the logits [b, t, vocab] are never all in memory."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import sharding


class TokenLosses(NamedTuple):
    """Loss and hit of each token."""

    cross_entropy: Array  # [b, t] at least float32, -log p(target) in nats
    correct: Array  # [b, t] bool, the target has the largest logit
    log_z: Array  # [b, t] as cross_entropy, logarithm of the softmax's denominator


def token_losses(attend: Callable[[Array], Array], x: Array, targets: Array, chunk: int | None = None) -> TokenLosses:
    """Cross-entropy of every token, log_z - logit[target] with log_z = log sum exp logits and logits = attend(x).

    Args:
      attend: the head, [..., d] -> [..., vocab], the same for every token; arrays that it closes over get their gradients. A logit
        may be -inf: it counts for nothing.
      x: [b, t, d]. targets: [b, t] int32.
      chunk: at least 1, tokens of a row whose logits exist at once; the backward pass computes them again. None: all, saved.
    Cost: with chunks, memory b chunk vocab, and in a training step a fourth matrix product of 2 b t d vocab in addition to the
    head's own three. With context parallelism each device goes through chunks of its own shard of time.
    """
    if chunk is None:
        return _token_losses(attend, x, targets)
    batch, length = targets.shape
    shards = sharding.plan("cross-entropy", b=batch, t=length).time_shards
    local = length // shards
    chunk = min(chunk, local)
    count = -(-local // chunk)

    def cut(a: Array) -> Array:
        """[b, t, ...] -> [count, b, shards, chunk, ...], padded at the end of each shard."""
        a = a.reshape(batch, shards, local, *a.shape[2:])
        a = jnp.pad(a, [(0, 0), (0, 0), (0, count * chunk - local)] + [(0, 0)] * (a.ndim - 3))
        return jnp.moveaxis(a.reshape(batch, shards, count, chunk, *a.shape[3:]), 2, 0)

    def joined(a: Array) -> Array:
        """The inverse of `cut`."""
        a = jnp.moveaxis(a, 0, 2).reshape(batch, shards, count * chunk)
        return a[:, :, :local].reshape(batch, length)

    one_chunk = jax.checkpoint(lambda x, targets: _token_losses(attend, x, targets))
    _, found = jax.lax.scan(lambda _, each: (None, one_chunk(*each)), None, (cut(x), cut(targets)))
    return jax.tree.map(joined, found)


def _token_losses(attend: Callable[[Array], Array], x: Array, targets: Array) -> TokenLosses:
    """Losses of all tokens at once."""
    logits = attend(x)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenLosses(log_z - picked, jnp.argmax(logits, axis=-1) == targets, log_z)
