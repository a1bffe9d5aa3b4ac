"""Lightning attention: a matrix-valued state with a fixed decay, slower in later heads and in later layers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.base import LinearAttentionMixer, head_dim
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import RMSNorm
from seqzoo.specs import Size


@register("lightning")
class LightningAttention(LinearAttentionMixer):
    r"""Lightning attention as in MiniMax-01 (MiniMax 2025, arXiv:2501.08313; Qin et al. 2024, arXiv:2401.04658).

        q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)
        S_t = exp(-s) S_{t-1} + k_t v_t^T        s = 2^(-8 i / heads) (1 - l / (L - 1 + 1e-5) + 1e-5)
        y_t = W_o [sigmoid(W_g x_t) * rmsnorm(q_t^T S_t)]

    in head i = 1, 2, ... of layer l = 0, 1, ... of L; the norm is taken over the values of all heads. Use it between layers of
    softmax attention, for long contexts; it forgets at a fixed rate, which in the last layer is nearly 0.

    Raises:
      ValueError: heads does not divide d_model, if head_dim is None.
    Cost: time O(t d heads k + t heads k^2); state 4 heads k^2 bytes per row, independent of t.
    The slopes s are constants. Layers that one scan runs share their compiled code, so with `depth` the slopes are a parameter that
    has no gradient and no weight decay, saved with the model, as the released code keeps them in a buffer. Initial weights are
    PyTorch's default (uniform within 1 / sqrt(fan_in)), our choice: the released settings draw from N(0, 0.02^2).
    """

    head_dim: Size | None = None
    """k = v, the width of a key and of a value in each head; None: d_model / heads."""

    gate_activation = staticmethod(jax.nn.sigmoid)
    shapes = tuple(Shape({"heads": heads}, {"head_dim": 1}) for heads in (1, 2, 4, 8))

    def setup(self, rngs, depth):
        width = head_dim(self.d_model, self.heads) if self.head_dim is None else self.head_dim
        expand = self.heads * width / self.d_model
        self.make_layers(rngs, expand, expand, scale=1.0, joint_norm=partial(RMSNorm, eps=1e-6))
        self.slopes = None if depth is None else self.layer_slopes(*depth)

    def layer_slopes(self, index: Any, count: int) -> nnx.Param:
        """The slopes of layer `index` of `count`, in float32 or wider."""
        table = jnp.asarray(slopes(self.heads, count), jnp.promote_types(self.param_dtype, jnp.float32))
        return nnx.Param(jnp.take(table, index, axis=0), axes=("heads",), decay=False)

    def log_decay(self, x):
        s = slopes(self.heads, 1)[0] if self.slopes is None else lax.stop_gradient(self.slopes[...])
        return -jnp.asarray(s, jnp.promote_types(x.dtype, jnp.float32))

    def project_qkv(self, x):
        q, k, v = super().project_qkv(x)
        return jax.nn.silu(q), jax.nn.silu(k), jax.nn.silu(v)


def slopes(heads: int, count: int) -> np.ndarray:
    """s of every layer and head, [count, heads]."""
    layers = 1 - np.arange(count) / (count - 1 + 1e-5) + 1e-5
    return layers[:, None] * 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
