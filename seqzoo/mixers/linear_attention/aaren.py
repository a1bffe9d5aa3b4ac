"""Aaren: attention with one learned query per head, which makes it a recurrent network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import MatrixStateMixer, head_dim
from seqzoo.mixers.linear_attention.linear import append_ones
from seqzoo.nn import Linear, exponential_gates, nonzero_divisor, scaled
from seqzoo.specs import Size


class AarenState(NamedTuple):
    """Numerator and denominator of the running softmax, both divided by exp(maximum)."""

    sums: Array  # [b, h, 1, v + 1]
    maximum: Array  # [b, h] largest score so far, -inf before the first token
    segment: Array  # [b] int32


@register("aaren")
class Aaren(MatrixStateMixer):
    r"""Attention as a recurrent network (Feng et al. 2024, arXiv:2405.13956).

        s_t = q . k_t / sqrt(v)        q = W_q token, the same for every position
        o_t = sum_{j <= t} softmax_j(s_1 .. s_t) v_j        y = W_o [o of all heads]

    step by step with a running maximum m_t = max(m_{t-1}, s_t): numerator and denominator decay by exp(m_{t-1} - m_t). Use it where
    a summary of the past is wanted: scores do not depend on the reading token, so one layer cannot look up a key.

    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2), all of it projections; state 4 (d + 2 heads) bytes per row, independent of t.
    """

    heads: Size = 4
    """Number of queries; each reads values of width d_model / heads."""

    def setup(self, rngs, depth):
        self.head_dim = head_dim(self.d_model, self.heads)
        make = lambda axes: Linear(self.d_model, self.d_model, axes=axes, **self.factory_kwargs(rngs))
        self.token = nnx.Param(jax.random.normal(rngs.params(), (self.d_model,), self.param_dtype), axes=("embed",))
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.out = make(("heads", "embed"))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q = self.q(self.token[...].astype(x.dtype)).reshape(self.heads, -1)
        k, v = self.split_heads(self.k(x)), self.split_heads(self.v(x))
        scores = jnp.einsum("hk,bthk->bth", q, k, preferred_element_type=jnp.promote_types(k.dtype, jnp.float32))
        scores = scores * self.head_dim**-0.5
        first, segment = (None, None) if state is None else (state.maximum, state.segment)
        initial = None if state is None else state._replace(sums=scaled(state.sums, state.maximum[..., None, None]))
        gates = exponential_gates(scores, maximum=first, segment=segment, segment_ids=segment_ids)
        weights = jnp.exp(gates.log_weight)
        o, sums = linear_attention(
            jnp.ones_like(weights)[..., None],
            weights[..., None],
            append_ones(v).astype(weights.dtype),
            log_decay=gates.log_decay,
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(initial, "sums"),
        )
        o = segments.mask_padding(o[..., :-1] / nonzero_divisor(o[..., -1:]), segment_ids).astype(v.dtype)
        maximum = gates.maximum[:, -1]
        sums = scaled(sums, -maximum[..., None, None])
        return self.out(rearrange(o, "b t h v -> b t (h v)")), next_state(state, segment_ids, sums=sums, maximum=maximum)

    def init_state(self, batch, max_length=None, dtype=None) -> AarenState:
        """Empty sums, with the maximum at -inf; `max_length` has no influence on their size."""
        dtype = jnp.promote_types(jnp.float32, self.cache_dtype(dtype))
        sums, maximum = jnp.zeros((batch, self.heads, 1, self.head_dim + 1), dtype), jnp.full((batch, self.heads), -jnp.inf, dtype)
        return AarenState(sums, maximum, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        per_token = 6 * self.d_model**2 + 2 * self.d_model + 4 * self.heads * (self.head_dim + 1)
        return 2 * self.d_model**2 + batch * length * per_token
