"""Lightning attention: a matrix memory that forgets at a fixed pace, slower in later heads and in later layers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.gated_memory import GatedMemory
from seqzoo.nn import RMSNorm


@register("lightning")
class LightningAttention(GatedMemory):
    r"""Lightning attention as in MiniMax-01 (MiniMax 2025, arXiv:2501.08313; Qin et al. 2024, arXiv:2401.04658).

        q, k, v = silu(W_q x), silu(W_k x), silu(W_v x)
        S_t = exp(-s) S_{t-1} + k_t v_t^T        s = 2^(-8 i / heads) (1 - l / (L - 1 + 1e-5) + 1e-5)
        y_t = W_o [sigmoid(W_r x_t) * rmsnorm(q_t^T S_t)]

    in head i = 1, 2, ... of layer l = 0, 1, ... of L; the norm is taken over the values of all heads. Use it between layers of
    softmax attention, for long contexts; it forgets at a fixed pace, which the last layer hardly does at all.

    Args:
      d_model: width of x and y.
      heads: number of memories.
      head_dim: k = v, the width of a key and of a value; None is d_model / heads.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
      depth: (l, L); l may be traced. None: as for the first layer.
    Raises:
      ValueError: heads does not divide d_model, if head_dim is None; head_dim < 1.
    Cost: time O(t d heads k + t heads k^2); state 4 heads k^2 bytes per row, independent of t.
    The slopes are constants; those of layers that share one compiled body cannot be code, so with `depth` they are a parameter that
    has no gradient and no weight decay, saved with the model, as the released code keeps them in a buffer. Initial weights are
    the framework's (uniform within 1 / sqrt(fan_in)), our choice: the released settings draw from N(0, 0.02^2).
    """

    output_gate = staticmethod(jax.nn.sigmoid)

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        head_dim=None,
        implementation=None,
        depth: tuple[Any, int] | None = None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if head_dim is None and d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor, or head_dim")
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim={head_dim}: wanted at least 1, or None")
        expand = 1.0 if head_dim is None else heads * head_dim / d_model
        settings = {"implementation": implementation, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = partial(RMSNorm, eps=1e-6)
        super().__init__(d_model, heads=heads, expand_k=expand, expand_v=expand, scale=1.0, joint_norm=norm, **settings)
        self.slopes = None if depth is None else _constant(slopes(heads, depth[1]), depth[0], param_dtype)

    def log_decay(self, x):
        s = slopes(self.sizes[1], 1)[0] if self.slopes is None else lax.stop_gradient(self.slopes[...])
        return -jnp.asarray(s, jnp.promote_types(x.dtype, jnp.float32))

    def project(self, x):
        return tuple(jax.nn.silu(y) for y in super().project(x))


def _constant(table: np.ndarray, index: Any, dtype: Any) -> nnx.Param:
    """Row `index` of the table; it is not narrower than float32."""
    row = jnp.take(jnp.asarray(table, jnp.promote_types(dtype, jnp.float32)), index, axis=0)
    return nnx.Param(row, axes=("heads",), decay=False)


def slopes(heads: int, count: int) -> np.ndarray:
    """s of every layer and head, [count, heads]."""
    layers = 1 - np.arange(count) / (count - 1 + 1e-5) + 1e-5
    return layers[:, None] * 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
