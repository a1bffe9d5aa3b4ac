"""Normalised attention: linear attention with a divisor that is computed from the query token, not summed over keys."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import LinearAttentionState, MatrixStateMixer, empty_state, widths
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import Linear
from seqzoo.specs import Expansion, Size

LOG_NORMALISERS = {  # log eta(n)
    "exp": lambda n: n,
    "softplus": lambda n: jnp.log(jax.nn.softplus(n)),
    "sigmoid": jax.nn.log_sigmoid,
}
LOWEST = -30.0  # of n: 1 / eta, squared by a loss, stays inside float32


@register("norm_attention")
class NormAttention(MatrixStateMixer):
    r"""Normalised attention (Sieber et al. 2024, arXiv:2405.15731).

        S_t = S_{t-1} + k_t v_t^T        o_t = S_t^T q_t / eta(W_n x_t + b_n)        y_t = W_o [o of all heads] + b_o

    (equation 21) with eta = exp per head, biases in all projections, no feature map and no 1 / sqrt(k). Use it to study the
    denominator of attention: here it is a scale computed from the query token, so weights need not add up to one.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k / heads bytes per row, independent of t.
    W_n x + b_n is kept above -30: the definition, which divides by its exponential, would leave float32 at -88. heads=4, where the
    authors' code takes 1, and biases that start at zero, are our choice.
    """

    heads: Size = 4
    """Number of heads; the state of each is [d_model expand_k / heads, d_model / heads]."""
    expand_k: Expansion = 1.0
    """Width of all keys over d_model; more is a larger state."""
    normaliser: Literal["exp", "softplus", "sigmoid"] = "exp"
    """eta; the paper finds "exp" the best."""

    shapes = tuple(Shape({"heads": heads}, {"expand_k": heads}) for heads in (1, 2, 4, 8))

    def setup(self, rngs, depth):
        keys, values = widths(self.d_model, self.heads, self.expand_k, 1.0)
        self.key_dim, self.value_dim = keys // self.heads, values // self.heads
        kwargs = {"bias": True, **self.factory_kwargs(rngs)}
        self.q, self.k, self.v, self.n = (Linear(self.d_model, width, **kwargs) for width in (keys, keys, values, self.heads))
        self.out = Linear(self.d_model, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = (self.split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        n = self.n(x)
        n = jnp.maximum(n.astype(jnp.promote_types(n.dtype, jnp.float32)), LOWEST)
        o, matrix = linear_attention(
            q,
            k,
            v,
            scale=1.0,
            output_dtype=n.dtype,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        o = (o * jnp.exp(-LOG_NORMALISERS[self.normaliser](n))[..., None]).astype(v.dtype)
        return self.out(rearrange(o, "b t h v -> b t (h v)")), next_state(state, segment_ids, matrix=matrix)

    def init_state(self, batch, max_length=None, dtype=None) -> LinearAttentionState:
        """An empty state; `max_length` has no influence on its size."""
        return empty_state(batch, self.heads, self.key_dim, self.value_dim, self.cache_dtype(dtype))

    def flops(self, batch, length):
        k, v = self.key_dim, self.value_dim
        return batch * length * self.heads * (2 * self.d_model * (2 * k + 2 * v + 1) + 4 * k * v)
