"""Aaren: attention with one learned query per head, which makes it a recurrent network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.linear import with_ones
from seqzoo.nn import Linear, exponential_gates, nonzero


class AarenState(NamedTuple):
    """Numerator and denominator of the running softmax, both over exp(maximum)."""

    memory: Array  # [b, h, 1, v + 1]
    maximum: Array  # [b, h] largest score so far, -inf before the first token
    segment: Array  # [b] int32


@register("aaren")
class Aaren(Mixer):
    r"""Attention as a recurrent network (Feng et al. 2024, arXiv:2405.13956).

        s_t = q . k_t / sqrt(v)        q = W_q token, the same for every position
        o_t = sum_{j <= t} softmax_j(s_1 .. s_t) v_j        y = W_o [o of all heads]

    step by step with a running maximum m_t = max(m_{t-1}, s_t): numerator and denominator decay by exp(m_{t-1} - m_t). Use it where
    a summary of the past is wanted: scores do not depend on who reads, so one layer cannot look up what a token asks for.

    Args:
      d_model: width of x and y.
      heads: number of queries; each reads values of width d_model / heads.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2), all of it projections; state 4 (d + 2 heads) bytes per row, independent of t.
    """

    def __init__(self, d_model, *, heads=4, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
        make = lambda axes: Linear(d_model, d_model, axes=axes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (d_model,), param_dtype), axes=("embed",))
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.out = make(("heads", "embed"))
        self.sizes = (d_model, heads, d_model // heads)
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        heads = lambda y: y.reshape(*y.shape[:-1], *self.sizes[1:])
        k, v, q = heads(self.k(x)), heads(self.v(x)), heads(self.q(self.token[...].astype(x.dtype)))
        scores = jnp.einsum("hk,bthk->bth", q, k, preferred_element_type=jnp.promote_types(k.dtype, jnp.float32))
        scores = scores * self.sizes[2] ** -0.5
        first, segment = (None, None) if state is None else (state.maximum, state.segment)
        gates = exponential_gates(scores, maximum=first, segment=segment, segment_ids=segment_ids)
        weights = jnp.exp(gates.log_write)
        o, memory = linear_attention(
            jnp.ones_like(weights)[..., None],
            weights[..., None],
            with_ones(v).astype(weights.dtype),
            log_decay=gates.log_keep,
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        o = segments.mask_padding(o[..., :-1] / nonzero(o[..., -1:]), segment_ids).astype(v.dtype)
        return self.out(o.reshape(x.shape)), next_state(state, segment_ids, memory=memory, maximum=gates.maximum[:, -1])

    def init_state(self, batch, max_length=None, dtype=None) -> AarenState:
        """An empty sum, with the maximum at -inf; `max_length` has no bearing on its size."""
        _, heads, width = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        maximum = jnp.full((batch, heads), -jnp.inf, dtype)
        return AarenState(jnp.zeros((batch, heads, 1, width + 1), dtype), maximum, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, width = self.sizes
        per_token = 6 * d_model**2 + 2 * d_model + 4 * heads * (width + 1)
        return 2 * d_model**2 + batch * length * per_token
