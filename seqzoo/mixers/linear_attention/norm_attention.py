"""Normalised attention: linear attention whose divisor is not summed up but learned from the token that reads."""

import jax
import jax.numpy as jnp

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.gated_memory import MemoryState, empty_memory
from seqzoo.nn import Linear
from seqzoo.specs import choice

LOG_NORMALISERS = {  # log eta(n)
    "exp": lambda n: n,
    "softplus": lambda n: jnp.log(jax.nn.softplus(n)),
    "sigmoid": jax.nn.log_sigmoid,
}
LOWEST = -30.0  # of n: 1 / eta, squared by a loss, stays inside float32


@register("norm_attention")
class NormAttention(Mixer):
    r"""Normalised attention (Sieber et al. 2024, arXiv:2405.15731).

        S_t = S_{t-1} + k_t v_t^T        o_t = S_t^T q_t / eta(W_n x_t + b_n)        y_t = W_o [o of all heads] + b_o

    (equation 21) with eta = exp per head, biases in all projections, no feature map and no 1 / sqrt(k). Use it to see what the
    denominator of attention is for: here it is a scale that the reading token chooses, and rows of weights need not add up to one.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model / heads].
      expand_k: width of all keys over d_model; more is a larger memory.
      normaliser: eta, "exp", "softplus" or "sigmoid"; the paper finds the first the best.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; unknown normaliser.
    Cost: time O(t d^2); state 4 d^2 expand_k / heads bytes per row, independent of t.
    W_n x + b_n is kept above -30: the definition, which divides by its exponential, would leave float32 at -88. heads=4, where the
    authors' code takes 1, and biases that start at zero, are the zoo's.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        normaliser="exp",
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        keys = round(d_model * expand_k)
        if keys % heads or d_model % heads:
            raise ValueError(f"heads={heads} does not divide key width {keys} and d_model={d_model}: change heads or expand_k")
        settings = {"bias": True, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k, self.v, self.n = (Linear(d_model, width, **settings) for width in (keys, keys, d_model, heads))
        self.out = Linear(d_model, d_model, axes=("heads", "embed"), **settings)
        self.sizes = (d_model, heads, keys // heads, d_model // heads)
        self.normaliser, self.implementation = choice("normaliser", normaliser, LOG_NORMALISERS), implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        q, k, v = (p(x).reshape(*x.shape[:2], self.sizes[1], -1) for p in (self.q, self.k, self.v))
        n = self.n(x)
        n = jnp.maximum(n.astype(jnp.promote_types(n.dtype, jnp.float32)), LOWEST)
        o, memory = linear_attention(
            q, k, v, scale=1.0, segment_ids=segment_ids, implementation=self.implementation, **state_kwargs(state)
        )
        o = (o * jnp.exp(-LOG_NORMALISERS[self.normaliser](n))[..., None]).astype(v.dtype)
        return self.out(o.reshape(*x.shape[:2], -1)), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> MemoryState:
        """An empty memory; `max_length` has no bearing on its size."""
        return empty_memory(batch, *self.sizes[1:], self.dtype if dtype is None else dtype)

    def flops(self, batch, length) -> int:
        d_model, heads, k, v = self.sizes
        return batch * length * heads * (2 * d_model * (2 * k + 2 * v + 1) + 4 * k * v)
