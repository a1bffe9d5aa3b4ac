"""Gated and plain multilayer perceptrons, applied to each token alone."""

import math
from functools import partial

import jax

from seqzoo.channels.base import ChannelMixer, register
from seqzoo.nn import Linear
from seqzoo.specs import Expansion, Size


@register("swiglu")
class SwiGLU(ChannelMixer):
    """Gated MLP with a SiLU gate, y = W_o (silu(W_g x) * W_u x) (Shazeer 2020, arXiv:2002.05202).

    Cost: 6 d_model hidden FLOPs per token; no state.
    """

    expansion: Expansion = 8 / 3
    """Hidden width as a multiple of d_model, rounded up to a multiple of 8; 8/3 gives as many parameters as a GELU MLP with 4."""
    hidden: Size | None = None
    """Hidden width; None: from `expansion`."""
    bias: bool = False
    """Adds biases to the projections."""

    activation = staticmethod(jax.nn.silu)

    def setup(self, rngs, depth):
        hidden = 8 * math.ceil(self.d_model * self.expansion / 8) if self.hidden is None else self.hidden
        linear = partial(Linear, bias=self.bias, **self.factory_kwargs(rngs))
        self.gate = linear(self.d_model, hidden, axes=("embed", "mlp"))
        self.up = linear(self.d_model, hidden, axes=("embed", "mlp"))
        self.down = linear(hidden, self.d_model, axes=("mlp", "embed"))
        self.hidden_size = hidden

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        return self.down(self.activation(self.gate(x)) * self.up(x)), state

    def flops(self, batch, length):
        return 6 * batch * length * self.d_model * self.hidden_size


@register("geglu")
class GeGLU(SwiGLU):
    """Gated MLP with a GELU gate (tanh form, as in Gemma), y = W_o (gelu(W_g x) * W_u x) (Shazeer 2020, arXiv:2002.05202).

    Cost: 6 d_model hidden FLOPs per token; no state.
    """

    activation = staticmethod(jax.nn.gelu)


@register("gelu")
class GeluMLP(ChannelMixer):
    """MLP with biases, y = W_o gelu(W_i x + b_i) + b_o (tanh form of GELU, as in GPT-2; Hendrycks & Gimpel 2016, arXiv:1606.08415).

    Cost: 4 expansion d_model^2 FLOPs per token; no state.
    """

    expansion: Expansion = 4.0
    """Hidden width as a multiple of d_model, rounded."""

    def setup(self, rngs, depth):
        self.hidden_size = round(self.d_model * self.expansion)
        linear = partial(Linear, bias=True, **self.factory_kwargs(rngs))
        self.up = linear(self.d_model, self.hidden_size, axes=("embed", "mlp"))
        self.down = linear(self.hidden_size, self.d_model, axes=("mlp", "embed"))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        return self.down(jax.nn.gelu(self.up(x))), state

    def flops(self, batch, length):
        return 4 * batch * length * self.d_model * self.hidden_size
