"""Gated slot attention: softmax attention over a fixed number of slots, which tokens overwrite as they forget."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import MatrixStateMixer, log_forget_gate, widths
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import Linear, RMSNorm
from seqzoo.nn.gates import softmax
from seqzoo.specs import Expansion, Number, Positive, Size


class GSAState(NamedTuple):
    """Key and value of each slot, decayed averages of those of the tokens that wrote to it."""

    keys: Array  # [b, h, k, m]
    values: Array  # [b, h, m, v]
    segment: Array  # [b] int32


@register("gsa")
class GatedSlotAttention(MatrixStateMixer):
    r"""Gated slot attention (Zhang et al. 2024, arXiv:2409.07146).

        K_t = K_{t-1} Diag(alpha_t) + k_t (1 - alpha_t)^T        V_t = Diag(alpha_t) V_{t-1} + (1 - alpha_t) v_t^T
        o_t = V_t^T softmax(scale K_t^T q_t)        y_t = W_o rmsnorm(silu(o_t))

    with q, k, v = silu(W x), and alpha_t = sigmoid(W_f x_t)^(1/tau) per slot. Use it for sharp reads, as with softmax, from a state
    of constant size: a query first weighs the slots, then reads their values.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2 + t heads m (k + v)); state 4 heads m (k + v) bytes per row, independent of t.
    Two calls of the op: the first decays along the axis that is read out, the second along the one that is read with. Settings and
    initial weights (uniform within 1 / sqrt(fan_in)) are those of flash-linear-attention's layer; its optional convolutions are
    missing.
    """

    heads: Size = 4
    """Number of heads, each with m slots."""
    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    slots: Size | None = None
    """m, slots per head; None: k."""
    gate_temperature: Positive = 8.0
    """tau; larger values forget more slowly at initialisation."""
    scale: Number | None = 1.0
    """Factor on the scores; None: k^-0.5."""

    shapes = (
        Shape({"heads": 1}, {"expand_k": 1, "expand_v": 1, "slots": 1}),
        Shape({"heads": 1, "expand_k": 0.5, "expand_v": 0.5}, {"slots": 1}, STATE),
        Shape({"heads": 2}, {"expand_k": 2, "expand_v": 2, "slots": 1}),
        Shape({"heads": 4}, {"slots": 1}, STATE),
    )

    def setup(self, rngs, depth):
        keys, values = widths(self.d_model, self.heads, self.expand_k, self.expand_v)
        self.key_dim, self.value_dim = keys // self.heads, values // self.heads
        self.slot_count = self.key_dim if self.slots is None else self.slots
        sizes, kwargs = (keys, keys, values, self.heads * self.slot_count), self.factory_kwargs(rngs)
        self.q, self.k, self.v, self.forget = (Linear(self.d_model, size, **kwargs) for size in sizes)
        self.norm = RMSNorm(values, axis="heads", param_dtype=self.param_dtype)
        self.out = Linear(values, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = (self.split_heads(jax.nn.silu(projection(x))) for projection in (self.q, self.k, self.v))
        log_forget = log_forget_gate(self.split_heads(self.forget(x)), self.gate_temperature)
        write = -jnp.expm1(log_forget)
        q, k, wide_v = q.astype(write.dtype), k.astype(write.dtype), v.astype(write.dtype)
        side = {"segment_ids": segment_ids, "implementation": self.implementation}
        scores, keys = linear_attention(
            q, k, write, value_log_decay=log_forget, scale=self.scale, **side, **state_kwargs(state, "keys")
        )
        weights = softmax(scores)
        o, values = linear_attention(
            weights, write, wide_v, log_decay=log_forget, scale=1.0, **side, **state_kwargs(state, "values")
        )
        o = self.norm(jax.nn.silu(rearrange(o, "b t h v -> b t (h v)"))).astype(v.dtype)
        return self.out(o), next_state(state, segment_ids, keys=keys, values=values)

    def init_state(self, batch, max_length=None, dtype=None) -> GSAState:
        """Empty slots; `max_length` has no influence on their number."""
        dtype = jnp.promote_types(jnp.float32, self.cache_dtype(dtype))
        keys = jnp.zeros((batch, self.heads, self.key_dim, self.slot_count), dtype)
        values = jnp.zeros((batch, self.heads, self.slot_count, self.value_dim), dtype)
        return GSAState(keys, values, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        k, v, m = self.key_dim, self.value_dim, self.slot_count
        return batch * length * self.heads * (2 * self.d_model * (2 * k + 2 * v + m) + 4 * m * (k + v))
