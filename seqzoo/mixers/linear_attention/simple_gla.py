"""Simple gated linear attention: a matrix-valued state with one data-dependent forget gate per head, after short convolutions."""

from typing import NamedTuple

import jax
from jax import Array

from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.base import LinearAttentionMixer, log_forget_gate
from seqzoo.mixers.shapes import square_heads
from seqzoo.nn import Linear, ShortConvolution
from seqzoo.specs import Expansion, Positive, Size


class SimpleGLAState(NamedTuple):
    """Recurrent state, and the last inputs of the convolutions of q, k and v (none without them)."""

    matrix: Array  # [b, h, k, v]
    tails: tuple[Array, ...]  # [b, conv_size - 1, h k] twice, [b, conv_size - 1, h v]
    segment: Array  # [b] int32


@register("simple_gla")
class SimpleGatedLinearAttention(LinearAttentionMixer):
    r"""Gated linear attention with one gate per head (Yang et al. 2023, arXiv:2312.06635), the layer of flash-linear-attention.

        q, k, v = silu(conv(W_q x)), silu(conv(W_k x)), silu(conv(W_v x))        alpha_t = sigmoid(W_f x_t + b)^(1/tau), per head
        S_t = alpha_t S_{t-1} + k_t v_t^T        y_t = W_o [swish(W_g x_t) * rmsnorm(k^-0.5 q_t^T S_t)]

    Use it in place of GLA where speed matters more than forgetting by channel: a decay per head is a mask on a matrix product.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and conv_size - 1 inputs per row, independent of t.
    Settings and initial weights (uniform within 1 / sqrt(fan_in), the default of PyTorch) are those of that layer.
    """

    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    conv_size: Size | None = 4
    """Kernel size of the short convolutions; None: neither convolution nor silu."""
    gate_temperature: Positive = 16.0
    """tau; larger values forget more slowly at initialisation."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        self.make_layers(rngs, self.expand_k, self.expand_v)
        make = lambda d: (
            None if self.conv_size is None else ShortConvolution(d, self.conv_size, bias=False, **self.factory_kwargs(rngs))
        )
        keys, values = self.heads * self.key_dim, self.heads * self.value_dim
        self.q_convolution, self.k_convolution, self.v_convolution = make(keys), make(keys), make(values)

    def make_decay(self, rngs):
        self.forget = Linear(self.d_model, self.heads, bias=True, **self.factory_kwargs(rngs))

    def log_decay(self, x):
        return log_forget_gate(self.forget(x), self.gate_temperature)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        inputs, tails = [], []
        segment = None if state is None else state.segment
        convolutions = self.convolutions()
        if not convolutions:
            return super().__call__(x, state=state, segment_ids=segment_ids)
        x = self.clear_padding(x, segment_ids)
        for i, (projection, convolution) in enumerate(zip((self.q, self.k, self.v), convolutions, strict=True)):
            tail = None if state is None else state.tails[i]
            y, tail = convolution(projection(x), tail=tail, segment=segment, segment_ids=segment_ids)
            inputs.append(self.split_heads(jax.nn.silu(y)))
            tails.append(tail)
        q, k, v = inputs
        o, matrix = self.attend(q, k, v, self.log_decay(x), state, segment_ids)
        return self.output(x, o), next_state(state, segment_ids, matrix=matrix, tails=tuple(tails))

    def convolutions(self) -> tuple[ShortConvolution, ...]:
        """Those of q, k and v; none if conv_size is None."""
        made = (self.q_convolution, self.k_convolution, self.v_convolution)
        return tuple(convolution for convolution in made if convolution is not None)

    def init_state(self, batch, max_length=None, dtype=None) -> SimpleGLAState:
        """An empty state; `max_length` has no influence on its size."""
        matrix, segment = super().init_state(batch, dtype=dtype)
        tails = (convolution.init_state(batch, self.cache_dtype(dtype)) for convolution in self.convolutions())
        return SimpleGLAState(matrix, tuple(tails), segment)

    def flops(self, batch, length):
        return super().flops(batch, length) + 2 * batch * length * self.d_model * self.heads
