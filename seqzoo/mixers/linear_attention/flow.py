"""Flow-Attention: linear attention with conserved flows, so that keys compete for the attention of queries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import MatrixStateMixer, head_dim
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import Linear, nonzero_divisor
from seqzoo.specs import Size

EPS = 1e-6  # Wu et al. 2022, released code


class FlowState(NamedTuple):
    """Recurrent state, the sums by which flows are measured, and how many tokens of the document are in them."""

    matrix: Array  # [b, h, k, v]
    flows: Array  # [b, h, 1, 2 k] sums of k and of q
    conserved: Array  # [b, h, 1, 2 k] the same, each over its own flow
    competition: Array  # [b, h, 1, 1] sum of exp(O)
    position: Array  # [b] int32
    segment: Array  # [b] int32


@register("flow")
class FlowAttention(MatrixStateMixer):
    r"""Causal Flow-Attention (Wu et al. 2022, arXiv:2202.06258): q and k are sigmoids, and all sums run over s <= t.

        in_t = <q_t, sum k_s> / t        r_t = sigmoid(<q_t, sum k_s / out_s> / t)
        out_t = <k_t, sum q_s> / t        O_t = min(<k_t, sum q_s / in_s> / t, 1)        c_t = t e^{O_t} / sum e^{O_s}
        o_t = r_t (q_t / (in_t t))^T sum k_s (c_s v_s)^T        y_t = W_o [o of all heads] + b_o

    where <a, b> = (a + eps)^T (b + eps): O and r are a token's outgoing and incoming flow when that of the others is fixed to 1.
    Use it for linear attention in which tokens compete, as in a softmax: they compete through c, which is fixed when a token is
    written, so that the past is still one matrix.

    Raises:
      ValueError: heads does not divide d_model, if head_dim is None.
    Cost: time O(t d heads k + t heads k^2); state 4 (heads (k^2 + 4 k + 1) + 1) bytes per row, independent of t.
    t counts the tokens of the own document, as the sums do; `positions` given by the caller do not change it.
    The authors' single-file code is followed (those for vision and the long-range arena differ), without its dropout of 0.05 after
    W_o, which the backbone has. Projections have biases; that they start at zero, and heads=4, are our choice.
    """

    heads: Size = 4
    """Number of heads; the state of each is [k, k], and two sums of 2 k."""
    head_dim: Size | None = None
    """k, the width of a key and of a value in each head; None: d_model / heads."""

    shapes = tuple(Shape({"heads": heads}, {"head_dim": 1}) for heads in (1, 2, 4, 8))

    def setup(self, rngs, depth):
        self.key_dim = head_dim(self.d_model, self.heads) if self.head_dim is None else self.head_dim
        width, kwargs = self.heads * self.key_dim, {"bias": True, **self.factory_kwargs(rngs)}
        self.q, self.k, self.v = (Linear(self.d_model, width, **kwargs) for _ in range(3))
        self.out = Linear(width, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = (self.split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        narrow, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)  # a flow is a sum over the whole document
        q, k, v = jax.nn.sigmoid(q.astype(wide)), jax.nn.sigmoid(k.astype(wide)), v.astype(wide)
        segment, count = (None, jnp.zeros(x.shape[:1], jnp.int32)) if state is None else (state.segment, state.position)
        position, count = segments.positions(segment_ids, segment, count, x.shape[1])
        t = (position + 1).astype(wide)[:, :, None, None]
        leaves = {"position": count}

        def summed(leaf, q, k, v):
            """q_t^T sum k_s v_s^T, where the sum continues that leaf of the state."""
            side = {"segment_ids": segment_ids, "implementation": self.implementation}
            o, leaves[leaf] = linear_attention(q, k, v, scale=1.0, **side, **state_kwargs(state, leaf))
            return o

        one = jnp.ones_like(t, shape=(*q.shape[:3], 1))
        k_sum, q_sum = jnp.split(summed("flows", one, one, jnp.concatenate([k, q], axis=-1)), 2, axis=-1)
        incoming, outgoing = flow(q, k_sum) / t, flow(k, q_sum) / t
        k_sum, q_sum = jnp.split(summed("conserved", one, one, jnp.concatenate([k / outgoing, q / incoming], axis=-1)), 2, axis=-1)
        allocation = jax.nn.sigmoid(flow(q, k_sum) / t)
        source = jnp.exp(jnp.minimum(flow(k, q_sum) / t, 1))
        competition = t * source / nonzero_divisor(summed("competition", one, one, source))
        o = allocation * summed("matrix", *(z.astype(narrow) for z in (q / (incoming * t), k, competition * v)))
        return self.out(rearrange(o.astype(narrow), "b t h v -> b t (h v)")), next_state(state, segment_ids, **leaves)

    def init_state(self, batch, max_length=None, dtype=None) -> FlowState:
        """Empty sums; `max_length` has no influence on their size."""
        n, dtype = self.key_dim, jnp.promote_types(jnp.float32, self.cache_dtype(dtype))
        sums = (jnp.zeros((batch, self.heads, *shape), dtype) for shape in ((n, n), (1, 2 * n), (1, 2 * n), (1, 1)))
        return FlowState(*sums, *(jnp.zeros((batch,), jnp.int32) for _ in range(2)))

    def flops(self, batch, length):
        d_model, k = self.d_model, self.key_dim
        return batch * length * self.heads * (8 * d_model * k + 4 * (k**2 + 4 * k + 1))


def flow(a: Array, b: Array) -> Array:
    """<a, b> of the formula over the last axis, kept with size 1. A sum of products: matrix products may round to fewer digits."""
    return jnp.sum((a + EPS) * (b + EPS), axis=-1, keepdims=True)
