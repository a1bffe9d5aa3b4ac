"""Attention by its definition: the whole matrix of scores. Differentiated by JAX.

Cost: O(b h t s) time and memory. When t is small, as in decoding, this is also the fastest form: it reads each cached key once and
copies none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.attention.pairs import Settings, Tokens, kept, visible
from seqzoo.kernels.common.implementations import state_dtype


def score(q: Array, k: Array, dtype: Any) -> Array:
    """[b, h, t, s]: the dot products of q [b, t, h, k] and k [b, s, hk, k]."""
    b, t, h, width = q.shape
    grouped = q.reshape(b, t, k.shape[2], h // k.shape[2], width)
    return jnp.einsum("btigk,bsik->bigts", grouped, k, preferred_element_type=dtype).reshape(b, h, t, k.shape[1])


def mix(w: Array, v: Array, dtype: Any) -> Array:
    """[b, t, h, v]: the sums of v [b, s, hv, v] with weights w [b, h, t, s]."""
    b, h, t, _ = w.shape
    grouped = w.astype(v.dtype).reshape(b, v.shape[2], h // v.shape[2], t, v.shape[1])
    return jnp.einsum("bigts,bsiv->btigv", grouped, v, preferred_element_type=dtype).reshape(b, t, h, v.shape[3])


def attend(
    settings: Settings,
    q: Array,
    pieces: list[tuple[Array, Array, Tokens]],
    queries: Tokens,
    words: Array | None,
    *,
    score: Callable = score,
    mix: Callable = mix,
) -> Array:
    """o [b, t, h, v] in q's dtype: every query over the keys and values of all pieces (cache, chunk)."""
    dtype = state_dtype(q)
    keys = Tokens(*(jnp.concatenate(leaves, axis=1) for leaves in zip(*(tokens for _, _, tokens in pieces), strict=True)))
    seen = visible(settings, queries, keys)
    scores = jnp.concatenate([score(q, k, dtype) for k, _, _ in pieces], axis=-1) * settings.scale
    if settings.scores == "softmax":
        scores = jnp.where(seen, scores, -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True)
        top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1, total)
    else:
        weights = jax.nn.sigmoid(scores + settings.bias)
    weights = jnp.where(seen, weights, 0)
    if words is not None:
        weights = weights * kept(settings, words, keys)
    ends = [0]
    for k, _, _ in pieces:
        ends.append(ends[-1] + k.shape[1])
    parts = [mix(weights[..., a:z], v, dtype) for a, z, (_, v, _) in zip(ends, ends[1:], pieces, strict=False)]
    return sum(parts[1:], parts[0]).astype(q.dtype)
