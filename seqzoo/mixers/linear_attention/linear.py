"""Linear attention: a feature map instead of softmax's kernel, so that the past is one matrix per head."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import MatrixStateMixer, widths
from seqzoo.mixers.shapes import square_heads
from seqzoo.nn import Linear
from seqzoo.nn.gates import exponential_linear
from seqzoo.specs import Expansion

EPS = 1e-6  # Katharopoulos et al. 2020, released code


class LinearState(NamedTuple):
    """Recurrent state, with the normaliser as one more value column."""

    matrix: Array  # [b, h, k, v + 1]
    segment: Array  # [b] int32


@register("linear")
class LinearAttention(MatrixStateMixer):
    r"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236).

        S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)        phi(x) = elu(x) + 1
        o_t = phi(q_t)^T S_t / (phi(q_t)^T z_t + eps)        y = W_o [o of all heads]

    Use it as the baseline of all matrix-valued states: nothing is ever forgotten.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d expand_k (d expand_v / heads + 1) bytes per row, independent of t.
    """

    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    normalised: bool = True
    """Divides by the sum of weights. If False, o_t = phi(q_t)^T S_t."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        keys, values = widths(self.d_model, self.heads, self.expand_k, self.expand_v)
        self.key_dim, self.value_dim = keys // self.heads, values // self.heads
        kwargs = self.factory_kwargs(rngs)
        self.q, self.k, self.v = (Linear(self.d_model, width, **kwargs) for width in (keys, keys, values))
        self.out = Linear(values, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = (self.split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        o, matrix = linear_attention(
            exponential_linear(q),
            exponential_linear(k),
            append_ones(v) if self.normalised else v,
            scale=1.0,
            output_dtype=jnp.promote_types(v.dtype, jnp.float32) if self.normalised else None,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        if self.normalised:
            o = (o[..., :-1] / (o[..., -1:] + EPS)).astype(v.dtype)
        return self.out(rearrange(o, "b t h v -> b t (h v)")), next_state(state, segment_ids, matrix=matrix)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> LinearState:
        """An empty state; `max_length` has no influence on its size."""
        shape = (batch, self.heads, self.key_dim, self.value_dim + self.normalised)
        dtype = jnp.promote_types(jnp.float32, self.cache_dtype(dtype))
        return LinearState(jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        k, v = self.key_dim, self.value_dim
        return batch * length * self.heads * (4 * self.d_model * (k + v) + 4 * k * (v + self.normalised))


def append_ones(v: Array) -> Array:
    """v [b, t, h, v] with a last column of ones, which sums up the weights of the tokens."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
