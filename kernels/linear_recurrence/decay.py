"""Decays a_t of a row: one per token or one for all tokens, given as they are or as logarithms, and replaced at some tokens.

A document's first token forgets everything (0), and padding keeps the state (1). Loops ask for the decay of one token at a time, so
that neither the exponentials nor a decay shared by all tokens are ever stored for the whole row.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma

DECAY, FORGET, KEEP = 0, 1, 2  # the decay given; 0, at the first token of a document; 1, at padding


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values", "mask"), meta_fields=("log",))
@dataclass(frozen=True)
class Decay:
    """The decays of rows of t tokens."""

    values: Array  # [b, t, d]; or [b, 1, d] or [1, 1, d], the same at every token
    mask: Array | None  # [b, t] int8: DECAY, FORGET or KEEP; None is DECAY everywhere
    log: bool  # the values are logarithms

    @property
    def time_invariant(self) -> bool:
        """True if all tokens share one decay."""
        return self.values.shape[1] == 1

    def token(self, t: Array, dtype) -> Array:
        """[b or 1, d]: the decay of token t."""
        values = self.values[:, 0] if self.time_invariant else get_step(self.values, t)
        return self._decays(values, None if self.mask is None else get_step(self.mask, t), dtype)

    def times(self, t: Array, h: Array) -> Array:
        """[b, d]: h decayed by token t; exactly 0 at the first token of a document, whatever h is."""
        if self.mask is not None:
            h = jnp.where(get_step(self.mask, t)[:, None] == FORGET, jnp.zeros_like(h), h)
        return self.token(t, h.dtype) * h

    def all_tokens(self, dtype) -> Array:
        """[b or 1, t or 1, d]: the decays of all tokens."""
        return self._decays(self.values, self.mask, dtype)

    def _decays(self, values, mask, dtype):
        values = values.astype(dtype)  # before exp: a bfloat16 logarithm of a slow decay has digits that the decay has not
        a = jnp.exp(values) if self.log else values
        if mask is None:
            return a
        mask = mask[..., None]
        return jnp.where(mask == DECAY, a, (mask == KEEP).astype(a.dtype))

    def zero_gradient(self, like: Array, dtype) -> Array:
        """The initial carry for `add_gradient`: [b, d] in dtype if time-invariant, else like's [b, t, d] in that of the values."""
        if self.time_invariant:
            return zeros_like_vma(like, (like.shape[0], like.shape[2]), dtype)
        return zeros_like_vma(like, dtype=self.values.dtype)

    def add_gradient(self, gradient: Array, da: Array, t: Array) -> Array:
        """Adds token t's part to the gradient; da [b, d] is the gradient of its decay a_t."""
        da = da * self.token(t, da.dtype) if self.log else da
        if self.mask is not None:
            da = jnp.where(get_step(self.mask, t)[:, None] == DECAY, da, 0)
        return gradient + da if self.time_invariant else set_step(gradient, da, t)

    def finish_gradient(self, gradient: Array) -> Array:
        """The gradient of `values`, in their shape and dtype, from the last carry of `add_gradient`."""
        if self.time_invariant:
            gradient = gradient[:, None] if self.values.shape[0] > 1 else jnp.sum(gradient, axis=0)[None, None]
        return gradient.astype(self.values.dtype)


def segment_mask(segment_ids: Array, initial_segment: Array | None, reverse: bool) -> Array:
    """[b, t] int8: FORGET at the first token of a document (the last one, if reverse), KEEP at padding, else DECAY."""
    flip = functools.partial(jnp.flip, axis=1) if reverse else lambda ids: ids
    starts = flip(segments.starts(flip(segment_ids), initial_segment))
    return jnp.where(segment_ids == 0, KEEP, jnp.where(starts, FORGET, DECAY)).astype(jnp.int8)
