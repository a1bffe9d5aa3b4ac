"""Channel mixers: the half of a block that works on each token alone. Same signature as a mixer, and its own registry."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.nn import Linear
from seqzoo.registry import Registry

registry = Registry("channel mixer", reserved=("dtype", "param_dtype", "rngs"))
register = registry.register


class Pointwise(nnx.Module):
    """A channel mixer that looks at no other token, so its state is empty."""

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> tuple:
        """The empty tuple: nothing is carried."""
        return ()


@register("swiglu")
class SwiGLU(Pointwise):
    """y = W_o (silu(W_g x) * W_u x) (Shazeer 2020, arXiv:2002.05202).

    Args:
      d_model: width of x and y.
      expansion: hidden width over d_model, rounded up to a multiple of 8; 8/3 gives the parameters of a GELU MLP with 4.
    """

    def __init__(self, d_model: int, *, expansion: float = 8 / 3, dtype=None, param_dtype=jnp.float32, rngs: nnx.Rngs):
        hidden = 8 * math.ceil(d_model * expansion / 8)
        make = lambda *widths, axes: Linear(*widths, axes=axes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = make(d_model, hidden, axes=("embed", "mlp"))
        self.up = make(d_model, hidden, axes=("embed", "mlp"))
        self.down = make(hidden, d_model, axes=("mlp", "embed"))
        self.size = (d_model, hidden)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], state)."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x)), state

    def flops(self, batch: int, length: int) -> int:
        """Three matrix products per token."""
        return 6 * batch * length * math.prod(self.size)


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


@register("none")
def no_channel_mixer(d_model: int, *, dtype=None, param_dtype=None, rngs=None) -> None:
    """No channel mixing: the block is its mixer alone."""
    return None
