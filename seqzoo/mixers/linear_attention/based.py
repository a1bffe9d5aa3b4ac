"""Based's linear attention: the softmax's exponential replaced by its Taylor series, so that the past is one matrix per head."""

from typing import Annotated

import jax.numpy as jnp
from einops import rearrange
from pydantic import Field

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import LinearAttentionState, MatrixStateMixer, empty_state, head_dim
from seqzoo.mixers.linear_attention.linear import append_ones
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import Linear, taylor_feature_dim, taylor_features
from seqzoo.specs import Size


@register("based")
class Based(MatrixStateMixer):
    r"""Based's linear attention (Arora et al. 2024, arXiv:2402.18668), without its window and convolution layers.

        S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)
        o_t = phi(q_t)^T S_t / phi(q_t)^T z_t        y = W_o [o of all heads]
        phi(q)^T phi(k) = 1 + s + s^2 / 2        s = q^T k / sqrt(f)        q, k: [f], v: [d / heads]

    Use it for recall from a state of fixed size, which grows with the square of `feature_dim`. The paper's models alternate it with
    short convolutions, ("base_conv", "based"), or with windows, ("based", "softmax(window=64)").

    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2 + t d f^2); state 2 (f^2 + 3 f + 2) (d + heads) bytes per row, independent of t: the matrix of each head is
    [1 + f + f (f + 1) / 2, d / heads + 1], with the normaliser z as its last column.
    The released code adds 1e-12 to the denominator, which here is kept above its lower bound of 1/2.
    """

    heads: Size = 4
    """Number of heads; values have width d_model / heads."""
    feature_dim: Annotated[int, Field(ge=1, le=1024)] = 16
    """f, the width of a query and of a key in each head."""

    shapes = tuple(Shape({"heads": heads}, {"feature_dim": 1}, STATE) for heads in (1, 2, 4, 8))

    def setup(self, rngs, depth):
        self.head_dim, self.features = head_dim(self.d_model, self.heads), taylor_feature_dim(self.feature_dim)
        kwargs = self.factory_kwargs(rngs)
        self.q, self.k = (Linear(self.d_model, self.heads * self.feature_dim, **kwargs) for _ in range(2))
        self.v = Linear(self.d_model, self.d_model, **kwargs)
        self.out = Linear(self.d_model, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = (self.split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        o, matrix = linear_attention(
            taylor_features(q),
            taylor_features(k),
            append_ones(v),
            scale=1.0,
            output_dtype=jnp.promote_types(v.dtype, jnp.float32),
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        # Every token's weight is ((1 + s)^2 + 1) / 2, so a smaller sum is padding's, or rounded.
        o = (o[..., :-1] / jnp.maximum(o[..., -1:], 0.5)).astype(v.dtype)
        return self.out(rearrange(o, "b t h v -> b t (h v)")), next_state(state, segment_ids, matrix=matrix)

    def init_state(self, batch, max_length=None, dtype=None) -> LinearAttentionState:
        """An empty state; `max_length` has no influence on its size."""
        return empty_state(batch, self.heads, self.features, self.head_dim + 1, self.cache_dtype(dtype))

    def flops(self, batch, length):
        d_model, keys = self.d_model, self.heads * self.feature_dim
        return batch * length * (4 * d_model * (keys + d_model) + 4 * self.features * (d_model + self.heads))
