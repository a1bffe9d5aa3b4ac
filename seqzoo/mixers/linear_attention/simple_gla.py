"""Simple gated linear attention: a matrix memory with one data-dependent forget gate per head, behind short convolutions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.gated_memory import GatedMemory, log_gate, positive_temperature
from seqzoo.nn import Linear, ShortConvolution


class SimpleGLAState(NamedTuple):
    """The memory, and the last inputs of the convolutions of q, k and v (none without them)."""

    memory: Array  # [b, h, k, v]
    tails: tuple[Array, ...]  # [b, conv_width - 1, h k] twice, [b, conv_width - 1, h v]
    segment: Array  # [b] int32


@register("simple_gla")
class SimpleGatedLinearAttention(GatedMemory):
    r"""Gated linear attention with one gate per head (Yang et al. 2023, arXiv:2312.06635), the layer of flash-linear-attention.

        q, k, v = silu(conv(W_q x)), silu(conv(W_k x)), silu(conv(W_v x))        alpha_t = sigmoid(W_g x_t + b)^(1/tau), per head
        S_t = alpha_t S_{t-1} + k_t v_t^T        y_t = W_o [swish(W_r x_t) * rmsnorm(k^-0.5 q_t^T S_t)]

    Use it in place of GLA where speed matters more than forgetting by channel: a decay per head is a mask on a matrix product.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      conv_width: taps of the short convolutions; None: neither convolution nor silu.
      gate_temperature: tau > 0; larger forgets more slowly at the start.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; gate_temperature <= 0; conv_width < 1.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and conv_width - 1 inputs per row, independent of t.
    Settings and the framework's initial weights (uniform within 1 / sqrt(fan_in)) are that layer's.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=1.0,
        conv_width=4,
        gate_temperature=16.0,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if conv_width is not None and conv_width < 1:
            raise ValueError(f"conv_width={conv_width}: wanted at least 1 tap, or None")
        self.conv_width, self.gate_temperature = conv_width, positive_temperature(gate_temperature)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(d_model, heads=heads, expand_k=expand_k, expand_v=expand_v, implementation=implementation, **settings)
        _, _, k, v = self.sizes
        make = lambda d: None if conv_width is None else ShortConvolution(d, conv_width, bias=False, **settings)
        self.q_convolution, self.k_convolution, self.v_convolution = make(heads * k), make(heads * k), make(heads * v)

    def make_decay(self, **settings):
        self.gate = Linear(self.sizes[0], self.sizes[1], bias=True, **settings)

    def log_decay(self, x):
        return log_gate(self.gate(x), self.gate_temperature)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        if self.conv_width is None:
            return super().__call__(x, state=state, segment_ids=segment_ids)
        inputs, tails = [], []
        segment = None if state is None else state.segment
        for i, (projection, convolution) in enumerate(zip((self.q, self.k, self.v), self.convolutions(), strict=True)):
            tail = None if state is None else state.tails[i]
            y, tail = convolution(projection(x), tail=tail, segment=segment, segment_ids=segment_ids)
            inputs.append(self.split(jax.nn.silu(y)))
            tails.append(tail)
        o, memory = self.attend(*inputs, self.log_decay(x), state, segment_ids)
        return self.finish(x, o), next_state(state, segment_ids, memory=memory, tails=tuple(tails))

    def convolutions(self) -> tuple[ShortConvolution, ...]:
        """Those of q, k and v; none if conv_width is None."""
        return () if self.conv_width is None else (self.q_convolution, self.k_convolution, self.v_convolution)

    def init_state(self, batch, max_length=None, dtype=None) -> SimpleGLAState:
        """An empty memory; `max_length` has no bearing on its size."""
        memory, segment = super().init_state(batch, dtype=dtype)
        tails = (convolution.init_state(batch, self.dtype if dtype is None else dtype) for convolution in self.convolutions())
        return SimpleGLAState(memory, tuple(tails), segment)

    def flops(self, batch, length) -> int:
        return super().flops(batch, length) + 2 * batch * length * self.sizes[0] * self.sizes[1]
