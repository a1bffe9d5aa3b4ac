"""Gated and plain multilayer perceptrons: each token alone."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.channels.base import Pointwise, register
from seqzoo.nn import Linear


@register("swiglu")
class SwiGLU(Pointwise):
    """y = W_o (silu(W_g x) * W_u x) (Shazeer 2020, arXiv:2002.05202).

    Args:
      d_model: width of x and y.
      expansion: hidden width over d_model, rounded up to a multiple of 8; 8/3 gives the parameters of a GELU MLP with 4.
      hidden: hidden width, exactly; None: from expansion.
      bias: whether the projections have biases.
    """

    activation = staticmethod(jax.nn.silu)

    def __init__(
        self,
        d_model: int,
        *,
        expansion: float = 8 / 3,
        hidden: int | None = None,
        bias: bool = False,
        dtype=None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = 8 * math.ceil(d_model * expansion / 8) if hidden is None else hidden
        make = lambda *widths, axes: Linear(*widths, axes=axes, bias=bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = make(d_model, hidden, axes=("embed", "mlp"))
        self.up = make(d_model, hidden, axes=("embed", "mlp"))
        self.down = make(hidden, d_model, axes=("mlp", "embed"))
        self.size = (d_model, hidden)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], state)."""
        return self.down(self.activation(self.gate(x)) * self.up(x)), state

    def flops(self, batch: int, length: int) -> int:
        """Three matrix products per token."""
        return 6 * batch * length * math.prod(self.size)


@register("geglu")
class GeGLU(SwiGLU):
    """y = W_o (gelu(W_g x) * W_u x), with the tanh form of GELU, as in Gemma (Shazeer 2020, arXiv:2002.05202).

    Args:
      d_model, expansion, hidden, bias: as in SwiGLU.
    """

    activation = staticmethod(jax.nn.gelu)


@register("gelu")
class GeluMLP(Pointwise):
    """y = W_o gelu(W_i x + b_i) + b_o (the tanh form of GELU, as in GPT-2).

    Args:
      d_model: width of x and y.
      expansion: hidden width over d_model.
    """

    def __init__(self, d_model: int, *, expansion: float = 4, dtype=None, param_dtype=jnp.float32, rngs: nnx.Rngs):
        hidden = round(d_model * expansion)
        make = lambda *widths, axes: Linear(*widths, axes=axes, bias=True, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.up = make(d_model, hidden, axes=("embed", "mlp"))
        self.down = make(hidden, d_model, axes=("mlp", "embed"))
        self.size = (d_model, hidden)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], state)."""
        return self.down(jax.nn.gelu(self.up(x))), state

    def flops(self, batch: int, length: int) -> int:
        """Two matrix products per token."""
        return 4 * batch * length * math.prod(self.size)
