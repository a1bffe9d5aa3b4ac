"""Linear attention: softmax attention's kernel replaced by a feature map, so that the past is one matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.nn import Linear

EPS = 1e-6  # Katharopoulos et al. 2020, released code


class LinearState(NamedTuple):
    """What has been written, with the normaliser as one more value column."""

    memory: Array  # [b, h, k, v + 1]
    segment: Array  # [b] int32


@register("linear")
class LinearAttention(Mixer):
    r"""Linear attention (Katharopoulos et al. 2020, arXiv:2006.16236).

        S_t = S_{t-1} + phi(k_t) v_t^T        z_t = z_{t-1} + phi(k_t)        phi(x) = elu(x) + 1
        o_t = phi(q_t)^T S_t / (phi(q_t)^T z_t + eps)        y = W_o [o of all heads]

    Use it as the baseline of all matrix memories: nothing is ever forgotten.

    Args:
      d_model: width of x and y.
      heads: number of memories, each d_model / heads square.
      normalised: whether to divide by the sum of weights; False leaves o_t = phi(q_t)^T S_t.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2); state 4 d (d / heads + 1) bytes per row, independent of t.
    """

    def __init__(self, d_model, *, heads=4, normalised=True, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
        make = lambda axes: Linear(d_model, d_model, axes=axes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.out = make(("heads", "embed"))
        self.sizes = (d_model, heads, d_model // heads)
        self.normalised, self.implementation = normalised, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        q, k, v = (p(x).reshape(*x.shape[:2], *self.sizes[1:]) for p in (self.q, self.k, self.v))
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        if self.normalised:
            v = with_ones(v)
        o, memory = linear_attention(
            q, k, v, scale=1.0, segment_ids=segment_ids, implementation=self.implementation, **state_kwargs(state)
        )
        if self.normalised:
            o = o[..., :-1] / (o[..., -1:] + EPS)
        return self.out(o.reshape(*x.shape[:2], -1)), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> LinearState:
        """An empty memory; `max_length` has no bearing on its size."""
        _, heads, width = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        return LinearState(jnp.zeros((batch, heads, width, width + self.normalised), dtype), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, width = self.sizes
        return batch * length * (8 * d_model**2 + 4 * heads * width * (width + self.normalised))


def with_ones(v: Array) -> Array:
    """v [b, t, h, v] with a column of ones behind it: what a memory writes there is the sum of its weights."""
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
