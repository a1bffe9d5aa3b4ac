"""Choice of the next token: greedy, or sampled with temperature, top-k and top-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class Sampling(NamedTuple):
    """Settings of sampling; without keys decoding is greedy."""

    keys: Array | None  # [b] PRNG keys, one for each row
    temperature: Array | None  # [] float32, above 0
    top_p: Array | None  # [] float32 in (0, 1]; None: no bound


GREEDY = Sampling(None, None, None)


def candidates(logits: Array, temperature: Array, top_k: int | None, top_p: Array | None) -> tuple[Array, Array]:
    """Candidate tokens and their log-weights.

        p = softmax(logits / temperature)

    cut to the `top_k` most probable tokens, renormalised, and then to the fewest of these, the most probable ones, whose
    probabilities add up to `top_p` (Holtzman et al. 2019, arXiv:1904.09751). Equally probable tokens are ordered by id, so that
    top_k=k keeps exactly k; the most probable token is always kept.

    Args:
      logits: [b, vocab_size].
      temperature: above 0.
      top_k: in [1, vocab_size]; None: no bound.
      top_p: in (0, 1]; None: no bound.
    Returns:
      (log-weights [b, n] float32, unnormalised, -inf for cut tokens; ids [b, n] int32), n being top_k, or vocab_size without one.
    Cost: with a bound, a sort of the n.
    """
    logits = logits.astype(jnp.float32)
    weights = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
    if top_k is None and top_p is None:
        return weights, lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    weights, ids = lax.top_k(weights, weights.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        p = jax.nn.softmax(weights, axis=-1)
        better = jnp.cumsum(p, axis=-1) - p  # exactly 0 for the first
        weights = jnp.where(better < top_p, weights, -jnp.inf)
    return weights, ids.astype(jnp.int32)


def choose(logits: Array, sampling: Sampling, step: Array, top_k: int | None) -> Array:
    """Next token of each row, [b] int32. logits: [b, vocab_size]; step: [] int32, number of tokens generated before.

    The draw of a row is a function of its logits, its key and the step, not of other rows.
    """
    if sampling.keys is None or sampling.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    weights, ids = candidates(logits, sampling.temperature, top_k, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(sampling.keys, step)
    drawn = jax.vmap(jax.random.categorical)(keys, weights)
    return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]
