"""What multiplies the state at each token: a decay of its own or one for all, given as it is or as its logarithm.

Documents overrule it where they start and at padding. Loops ask for one token's decay at a time, so none of this is written out.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma

FOLLOW, FORGET, KEEP = 0, 1, 2  # the given decay; 0, at a document's first token; 1, at padding


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values", "rule"), meta_fields=("log",))
@dataclass(frozen=True)
class Decay:
    """The decays of a row of t tokens, none of which is written out unless it was given so."""

    values: Array  # [b, t, d]; or [b, 1, d] or [1, 1, d], the same at every token
    rule: Array | None  # [b, t] int8: FOLLOW, FORGET or KEEP; None: follow everywhere
    log: bool  # the values are logarithms

    @property
    def constant(self) -> bool:
        """Whether all tokens share one decay."""
        return self.values.shape[1] == 1

    def at(self, t: Array, dtype) -> Array:
        """[b or 1, d]: the decay of token t."""
        values = self.values[:, 0] if self.constant else get_step(self.values, t)
        return self._decays(values, None if self.rule is None else get_step(self.rule, t), dtype)

    def written_out(self, dtype) -> Array:
        """[b or 1, t or 1, d]: those of all tokens."""
        return self._decays(self.values, self.rule, dtype)

    def _decays(self, values, rule, dtype):
        values = values.astype(dtype)  # before exp: a bfloat16 logarithm of a slow decay has digits that the decay has not
        a = jnp.exp(values) if self.log else values
        if rule is None:
            return a
        rule = rule[..., None]
        return jnp.where(rule == FOLLOW, a, (rule == KEEP).astype(a.dtype))

    def gradient(self, like: Array, dtype) -> Array:
        """Where `collect` starts; `like` is [b, t, d]."""
        return (
            zeros_like_vma(like, (like.shape[0], like.shape[2]), dtype)
            if self.constant
            else zeros_like_vma(like, dtype=self.values.dtype)
        )

    def collect(self, gradient: Array, slope: Array, t: Array) -> Array:
        """The gradient with token t's: slope [b, d] is that of its decay."""
        slope = slope * self.at(t, slope.dtype) if self.log else slope
        if self.rule is not None:
            slope = jnp.where(get_step(self.rule, t)[:, None] == FOLLOW, slope, 0)
        return gradient + slope if self.constant else set_step(gradient, slope, t)

    def collected(self, gradient: Array) -> Array:
        """The gradient of `values`, in their shape and dtype."""
        if self.constant:
            gradient = gradient[:, None] if self.values.shape[0] > 1 else jnp.sum(gradient, axis=0)[None, None]
        return gradient.astype(self.values.dtype)


def rules(segment_ids: Array, initial_segment: Array | None, reverse: bool) -> Array:
    """[b, t] int8: what documents make of each token's decay. Reversed, a document starts at its last token."""
    turn = functools.partial(jnp.flip, axis=1) if reverse else lambda ids: ids
    starts = turn(segments.starts(turn(segment_ids), initial_segment))
    return jnp.where(segment_ids == 0, KEEP, jnp.where(starts, FORGET, FOLLOW)).astype(jnp.int8)
