"""Gated linear attention: a matrix memory with a data-dependent forget gate per key channel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, carried, register, updated
from seqzoo.nn import Linear, RMSNorm

SMALL_XAVIER = jax.nn.initializers.variance_scaling(2**-5, "fan_avg", "uniform")  # xavier with gain 2^-2.5, Yang et al.'s code


class GLAState(NamedTuple):
    """What has been written so far, decayed."""

    memory: Array  # [b, h, k, v]
    segment: Array  # [b] int32


@register("gla")
class GatedLinearAttention(Mixer):
    r"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635).

        S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T        alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/tau)
        y_t = W_o [swish(W_r x_t) * rmsnorm(scale q_t^T S_t)]

    Use it when decoding memory must stay constant and recall matters less than with softmax attention.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      gate_rank: inner width of the low-rank gate W_2 W_1.
      gate_temperature: tau > 0; larger forgets more slowly at the start.
      scale: of the queries; None is k^-0.5.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; gate_temperature <= 0.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes per row, independent of t.
    The paper's code scales k by (d / heads)^-0.5 and has a layer norm without a learned scale; fla scales q by k^-0.5 and has an
    RMS norm with one. The defaults here are fla's, with which the released checkpoints run.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=0.5,
        expand_v=1.0,
        gate_rank=16,
        gate_temperature=16.0,
        scale=None,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        keys, values = round(d_model * expand_k), round(d_model * expand_v)
        if keys % heads or values % heads:
            raise ValueError(
                f"heads={heads} does not divide key width {keys} and value width {values}: change heads or expand_k, expand_v"
            )
        if gate_temperature <= 0:
            raise ValueError(f"gate_temperature={gate_temperature}: wanted more than 0")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q = Linear(d_model, keys, init=SMALL_XAVIER, **settings)
        self.k = Linear(d_model, keys, init=SMALL_XAVIER, **settings)
        self.v = Linear(d_model, values, **settings)
        self.r = Linear(d_model, values, **settings)
        self.gate_down = Linear(d_model, gate_rank, axes=("embed", None), init=SMALL_XAVIER, **settings)
        self.gate_up = Linear(gate_rank, keys, axes=(None, "heads"), bias=True, init=SMALL_XAVIER, **settings)
        self.norm = RMSNorm(values // heads, axis=None, param_dtype=param_dtype)
        self.out = Linear(values, d_model, axes=("heads", "embed"), **settings)
        self.sizes = (d_model, heads, keys // heads, values // heads, gate_rank)
        self.gate_temperature, self.scale, self.implementation = gate_temperature, scale, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        heads = lambda y: y.reshape(*x.shape[:2], self.sizes[1], -1)
        gate = self.gate_up(self.gate_down(x))
        # A gate is small beside 1 where it matters most, so its logarithm is taken in float32 at least.
        log_decay = jax.nn.log_sigmoid(gate.astype(jnp.promote_types(gate.dtype, jnp.float32))) / self.gate_temperature
        o, memory = linear_attention(
            heads(self.q(x)),
            heads(self.k(x)),
            heads(self.v(x)),
            log_decay=heads(log_decay),
            scale=self.scale,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **carried(state),
        )
        o = self.norm(o).reshape(*x.shape[:2], -1)
        return self.out(jax.nn.swish(self.r(x)) * o), updated(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> GLAState:
        """An empty memory; `max_length` has no bearing on its size."""
        _, heads, k, v, _ = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        return GLAState(jnp.zeros((batch, heads, k, v), dtype), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, k, v, rank = self.sizes
        projections = d_model * (2 * heads * k + 3 * heads * v + rank) + rank * heads * k
        return batch * length * (2 * projections + 4 * heads * k * v)
