"""Token shift: the previous real token, which RWKV mixes into the present one."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.convolution import short_convolution


def token_shift(
    x: Array, *, tail: Array | None = None, segment: Array | None = None, segment_ids: Array | None = None
) -> tuple[Array, Array]:
    """x_{t-1}: the real (non-padding) token before each, in the same document; zero at a document's start.

    A short convolution with kernel (1, 0), whose op handles documents, padding, the state and a mesh that cuts time.

    Args:
      x: [b, t, d] float, finite.
      tail: [b, 1, d], the last real token before the first; None is zero.
      segment: [b] int32, the document that `tail` belongs to; None or 0: the first token's.
      segment_ids: [b, t] int32, ids of packed documents, 0 is padding; None: all tokens continue the tail.
    Returns:
      (x_{t-1} [b, t, d] in x's dtype, exactly 0 at padding; the tail after the last token, in tail's dtype).
    Cost: O(t d); state d numbers per row.
    """
    kernel = jnp.zeros((2, x.shape[-1]), x.dtype).at[0].set(1)
    return short_convolution(x, kernel, initial_state=tail, initial_segment=segment, segment_ids=segment_ids)


def lerp(x: Array, previous: Array, mix: Array) -> Array:
    """mix * x + (1 - mix) * previous, with mix [d] on the *present* token as in RWKV-4; later versions put it on the previous one.

    x, previous: [b, t, d]; the result has x's dtype.
    """
    mix = mix.astype(x.dtype)[None, None]
    return mix * x + (1 - mix) * previous.astype(x.dtype)


def mixes(d: int, depth: tuple[Any, int] | None, power: float = 1.0) -> Array:
    """Initial mix [d] of RWKV-4: (i / d)^(power (1 - index / count)); later layers use the previous token less.

    depth: (index, count) of the layer; None is (0, 1).
    """
    index, count = (0, 1) if depth is None else depth
    fall = 1 - jnp.asarray(index, jnp.float32) / count
    return (jnp.arange(d, dtype=jnp.float32) / d) ** (power * fall)
