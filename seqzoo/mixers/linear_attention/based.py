"""Based's linear attention: the softmax's exponential replaced by its Taylor series, so that the past is one matrix."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.linear import with_ones
from seqzoo.nn import Linear, taylor, taylor_width


class BasedState(NamedTuple):
    """What has been written, with the normaliser as one more value column."""

    memory: Array  # [b, h, 1 + f + f (f + 1) / 2, v + 1]
    segment: Array  # [b] int32


@register("based")
class Based(Mixer):
    r"""Based's linear attention (Arora et al. 2024, arXiv:2402.18668), without its window and convolution layers.

        S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)
        o_t = phi(q_t)^T S_t / phi(q_t)^T z_t        y = W_o [o of all heads]
        phi(q)^T phi(k) = 1 + s + s^2 / 2        s = q^T k / sqrt(f)        q, k: [f], v: [d / heads]

    Use it for recall from a memory of fixed size, which `feature_width` sets: its square is what the memory grows with. The paper's
    models put it in turn with short convolutions, ("base_conv", "based"), or with windows, ("based", "softmax(window=64)").

    Args:
      d_model: width of x and y.
      heads: number of memories, each [1 + f + f (f + 1) / 2, d_model / heads].
      feature_width: f, the width of a query and of a key in each head.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide d_model; feature_width < 1.
    Cost: time O(t d^2 + t d f^2); state 2 (f^2 + 3 f + 2) (d + heads) bytes per row, independent of t.
    The released code adds 1e-12 to the denominator, where here it is kept above its lower bound of 1/2.
    """

    def __init__(self, d_model, *, heads=4, feature_width=16, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
        if feature_width < 1:
            raise ValueError(f"feature_width={feature_width}: wanted at least 1")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k = (Linear(d_model, heads * feature_width, **settings) for _ in range(2))
        self.v = Linear(d_model, d_model, **settings)
        self.out = Linear(d_model, d_model, axes=("heads", "embed"), **settings)
        self.sizes = (d_model, heads, feature_width)
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        q, k, v = (p(x).reshape(*x.shape[:2], self.sizes[1], -1) for p in (self.q, self.k, self.v))
        o, memory = linear_attention(
            taylor(q),
            taylor(k),
            with_ones(v),
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        # Every token's weight is ((1 + s)^2 + 1) / 2, so a smaller sum is padding's, or rounded.
        o = o[..., :-1] / jnp.maximum(o[..., -1:], 0.5)
        return self.out(o.reshape(*x.shape[:2], -1)), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> BasedState:
        """An empty memory; `max_length` has no bearing on its size."""
        d_model, heads, f = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        memory = jnp.zeros((batch, heads, taylor_width(f), d_model // heads + 1), dtype)
        return BasedState(memory, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, f = self.sizes
        return batch * length * (4 * d_model * (heads * f + d_model) + 4 * taylor_width(f) * (d_model + heads))
