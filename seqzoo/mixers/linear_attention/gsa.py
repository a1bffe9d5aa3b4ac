"""Gated slot attention: softmax attention over a fixed number of slots, which tokens overwrite as they forget."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register
from seqzoo.mixers.linear_attention.gated_memory import log_gate, positive_temperature, widths
from seqzoo.nn import Linear, RMSNorm


class GSAState(NamedTuple):
    """Each slot's key and value, decayed averages of those of the tokens that wrote to it."""

    keys: Array  # [b, h, k, m]
    values: Array  # [b, h, m, v]
    segment: Array  # [b] int32


@register("gsa")
class GatedSlotAttention(Mixer):
    r"""Gated slot attention (Zhang et al. 2024, arXiv:2409.07146).

        K_t = K_{t-1} Diag(alpha_t) + k_t (1 - alpha_t)^T        V_t = Diag(alpha_t) V_{t-1} + (1 - alpha_t) v_t^T
        o_t = V_t^T softmax(scale K_t^T q_t)        y_t = W_o rmsnorm(silu(o_t))

    with q, k, v = silu(W x), and alpha_t = sigmoid(W_f x_t)^(1/tau) per slot. Use it where softmax's sharp reads are wanted from a
    memory of constant size: a read is two steps, which slot and what it holds.

    Args:
      d_model: width of x and y.
      heads: number of memories; key and value width are d_model expand_k / heads and d_model expand_v / heads.
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      slots: m, per head; None is the key width.
      gate_temperature: tau > 0; larger forgets more slowly at the start.
      scale: of the scores; None is k^-0.5.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; slots < 1; gate_temperature <= 0.
    Cost: time O(t d^2 + t heads m (k + v)); state 4 heads m (k + v) bytes per row, independent of t.
    Two calls of the op: the first decays along the axis that is read out, the second along the one that is read with. Settings and
    initial weights (uniform within 1 / sqrt(fan_in)) are those of flash-linear-attention's layer, whose optional convolutions are
    left out.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=1.0,
        slots=None,
        gate_temperature=8.0,
        scale=1.0,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        keys, values = widths(d_model, heads, expand_k, expand_v)
        slots = keys // heads if slots is None else slots
        if slots < 1:
            raise ValueError(f"slots={slots}: wanted at least 1, or None")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.k, self.v, self.f = (Linear(d_model, n, **settings) for n in (keys, keys, values, heads * slots))
        self.norm = RMSNorm(values, axis="heads", param_dtype=param_dtype)
        self.out = Linear(values, d_model, axes=("heads", "embed"), **settings)
        self.sizes = (d_model, heads, keys // heads, values // heads, slots)
        self.gate_temperature, self.scale, self.implementation = positive_temperature(gate_temperature), scale, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        heads = lambda y: y.reshape(*y.shape[:2], self.sizes[1], -1)
        q, k, v = (heads(jax.nn.silu(p(x))) for p in (self.q, self.k, self.v))
        forget = log_gate(heads(self.f(x)), self.gate_temperature)
        write = -jnp.expm1(forget)
        settings = {"segment_ids": segment_ids, "implementation": self.implementation}
        first, second = {}, {}
        if state is not None:
            first, second = ({"initial_state": s, "initial_segment": state.segment} for s in (state.keys, state.values))
        scores, keys = linear_attention(
            q.astype(write.dtype), k.astype(write.dtype), write, value_log_decay=forget, scale=self.scale, **settings, **first
        )
        weights = jax.nn.softmax(scores, axis=-1)
        o, values = linear_attention(weights, write, v.astype(write.dtype), log_decay=forget, scale=1.0, **settings, **second)
        o = self.norm(jax.nn.silu(o.reshape(*x.shape[:2], -1))).astype(v.dtype)
        return self.out(o), next_state(state, segment_ids, keys=keys, values=values)

    def init_state(self, batch, max_length=None, dtype=None) -> GSAState:
        """Empty slots; `max_length` has no bearing on their number."""
        _, heads, k, v, slots = self.sizes
        dtype = jnp.promote_types(jnp.float32, self.dtype if dtype is None else dtype)
        keys, values = jnp.zeros((batch, heads, k, slots), dtype), jnp.zeros((batch, heads, slots, v), dtype)
        return GSAState(keys, values, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, k, v, slots = self.sizes
        return batch * length * heads * (2 * d_model * (2 * k + 2 * v + slots) + 4 * slots * (k + v))
