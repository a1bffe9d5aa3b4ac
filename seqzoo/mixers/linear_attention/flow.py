"""Flow-Attention: linear attention in which tokens compete to be read and readers share what comes in, as flows are conserved."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register
from seqzoo.nn import Linear, nonzero

EPS = 1e-6  # Wu et al. 2022, released code


class FlowState(NamedTuple):
    """The memory, the four sums that flows are measured by, and how many tokens of the document are in them."""

    memory: Array  # [b, h, k, v]
    flows: Array  # [b, h, 1, 2 k] sums of k and of q
    conserved: Array  # [b, h, 1, 2 k] the same, each over its own flow
    competition: Array  # [b, h, 1, 1] sum of exp(O)
    position: Array  # [b] int32
    segment: Array  # [b] int32


@register("flow")
class FlowAttention(Mixer):
    r"""Causal Flow-Attention (Wu et al. 2022, arXiv:2202.06258), with q and k behind a sigmoid and all sums over s <= t.

        in_t = <q_t, sum k_s> / t        r_t = sigmoid(<q_t, sum k_s / out_s> / t)
        out_t = <k_t, sum q_s> / t        O_t = min(<k_t, sum q_s / in_s> / t, 1)        c_t = t e^{O_t} / sum e^{O_s}
        o_t = r_t (q_t / (in_t t))^T sum k_s (c_s v_s)^T        y_t = W_o [o of all heads] + b_o

    where <a, b> = (a + eps)^T (b + eps): O and r are what is left of a token's outgoing and incoming flow when that of the others
    is fixed to 1. Use it where a softmax over sources is missed in linear attention: tokens compete through c, which is fixed when
    a token is written, so that the past is still one matrix.

    Args:
      d_model: width of x and y.
      heads: number of memories, each d_model / heads square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2); state 4 (d (d / heads + 4) + heads + 1) bytes per row, independent of t.
    t counts the tokens of the own document, which is what the sums hold; `positions` given by the caller do not change it.
    The authors' single-file code is followed (those for vision and the long-range arena differ); its dropout of 0.05 behind W_o is
    the backbone's to give. Projections have biases; that they start at zero, and heads=4, are the zoo's.
    """

    def __init__(self, d_model, *, heads=4, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
        make = lambda axes: Linear(d_model, d_model, axes=axes, bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q, self.k, self.v = (make(("embed", "heads")) for _ in range(3))
        self.out = make(("heads", "embed"))
        self.sizes = (d_model, heads, d_model // heads)
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        q, k, v = (p(x).reshape(*x.shape[:2], *self.sizes[1:]) for p in (self.q, self.k, self.v))
        narrow, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)  # a flow is a sum over the whole document
        q, k, v = jax.nn.sigmoid(q.astype(wide)), jax.nn.sigmoid(k.astype(wide)), v.astype(wide)
        segment, count = (None, jnp.zeros(x.shape[:1], jnp.int32)) if state is None else (state.segment, state.position)
        position, count = segments.positions(segment_ids, segment, count, x.shape[1])
        t = (position + 1).astype(wide)[:, :, None, None]
        leaves = {"position": count}

        def summed(name, q, k, v):
            """q_t^T sum k_s v_s^T, the sum carried on in a leaf of the state."""
            first = None if state is None else getattr(state, name)
            o, leaves[name] = linear_attention(
                q, k, v, scale=1.0, initial_state=first, initial_segment=segment, segment_ids=segment_ids,
                implementation=self.implementation,
            )  # fmt: skip
            return o

        one = jnp.ones_like(t, shape=(*q.shape[:3], 1))
        k_sum, q_sum = jnp.split(summed("flows", one, one, jnp.concatenate([k, q], axis=-1)), 2, axis=-1)
        incoming, outgoing = flow(q, k_sum) / t, flow(k, q_sum) / t
        k_sum, q_sum = jnp.split(summed("conserved", one, one, jnp.concatenate([k / outgoing, q / incoming], axis=-1)), 2, axis=-1)
        allocation = jax.nn.sigmoid(flow(q, k_sum) / t)
        source = jnp.exp(jnp.minimum(flow(k, q_sum) / t, 1))
        competition = t * source / nonzero(summed("competition", one, one, source))
        o = allocation * summed("memory", *(z.astype(narrow) for z in (q / (incoming * t), k, competition * v)))
        return self.out(o.astype(narrow).reshape(x.shape)), next_state(state, segment_ids, **leaves)

    def init_state(self, batch, max_length=None, dtype=None) -> FlowState:
        """Empty sums; `max_length` has no bearing on their size."""
        _, heads, width = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        sums = (jnp.zeros((batch, heads, *shape), dtype) for shape in ((width, width), (1, 2 * width), (1, 2 * width), (1, 1)))
        return FlowState(*sums, *(jnp.zeros((batch,), jnp.int32) for _ in range(2)))

    def flops(self, batch, length) -> int:
        d_model, heads, width = self.sizes
        return batch * length * (8 * d_model**2 + 4 * heads * (width**2 + 4 * width + 1))


def flow(a: Array, b: Array) -> Array:
    """<a, b> of the formula over the last axis, kept with size 1. A sum of products: matrix products may round to fewer digits."""
    return jnp.sum((a + EPS) * (b + EPS), axis=-1, keepdims=True)
