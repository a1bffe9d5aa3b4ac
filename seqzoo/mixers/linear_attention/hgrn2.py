"""HGRN2: a linear recurrence whose state is expanded to a matrix, and whose keys are one minus the forget gate."""

from typing import Annotated

import jax
from einops import rearrange
from pydantic import Field

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import LinearAttentionState, MatrixStateMixer, empty_state, head_dim
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import Linear, LowerBoundedGate, RMSNorm
from seqzoo.specs import Size


@register("hgrn2")
class HGRN2(MatrixStateMixer):
    r"""Gated linear recurrence with state expansion (Qin et al. 2024, arXiv:2404.07904).

        f_t = gamma + (1 - gamma) sigmoid(W_f x_t)        q_t = silu(W_q x_t)        v_t = W_i x_t
        S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T        y_t = W_o rmsnorm(k^-0.5 q_t^T S_t)

    with a lower bound gamma in [0, 1) per key channel; the norm is taken over the values of all heads. Use it in a stack, where
    lower layers follow the last tokens and upper ones remember for long.

    Raises:
      ValueError: heads does not divide d_model.
    Cost: time O(t d^2); state 4 d^2 / heads bytes per row, independent of t.
    Paper and flash-linear-attention learn one table of bounds for all layers, the sum over layers 1 to i of a softmax over layers:
    exactly zero in layer 0, never falling with depth. A layer here owns its bound, which starts where the table starts (all logits
    equal: i / count). Initial weights are PyTorch's default (uniform within 1 / sqrt(fan_in)), our choice. The factor k^-0.5, that
    library's, matters only relative to the norm's 1e-5.
    """

    heads: Size = 4
    """Number of heads; the state of each is d_model / heads square, the paper's expansion ratio (128 in its models)."""
    lower_bound: Annotated[float, Field(ge=0, lt=1)] | None = None
    """gamma, fixed. None: learned per channel, initially index / count of the layer (0.01 if that is less, or depth is unknown)."""

    shapes = tuple(Shape({"heads": heads}, measures=STATE) for heads in (1, 2, 4, 8, 16, 32))

    def setup(self, rngs, depth):
        self.head_dim = head_dim(self.d_model, self.heads)
        kwargs = self.factory_kwargs(rngs)
        self.q, self.forget, self.v = (Linear(self.d_model, self.d_model, **kwargs) for _ in range(3))
        self.bounded = LowerBoundedGate(self.d_model, self.lower_bound, depth=depth, param_dtype=self.param_dtype)
        self.norm = RMSNorm(self.d_model, axis="heads", param_dtype=self.param_dtype)
        self.out = Linear(self.d_model, self.d_model, axes=("heads", "embed"), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, v = jax.nn.silu(self.q(x)), self.v(x)
        log_forget, k = self.bounded(self.forget(x))
        o, matrix = linear_attention(
            self.split_heads(q),
            self.split_heads(k.astype(q.dtype)),
            self.split_heads(v),
            log_decay=self.split_heads(log_forget),
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        return self.out(self.norm(rearrange(o, "b t h v -> b t (h v)"))), next_state(state, segment_ids, matrix=matrix)

    def init_state(self, batch, max_length=None, dtype=None) -> LinearAttentionState:
        """An empty state; `max_length` has no influence on its size."""
        return empty_state(batch, self.heads, self.head_dim, self.head_dim, self.cache_dtype(dtype))

    def flops(self, batch, length):
        return batch * length * (8 * self.d_model**2 + 4 * self.heads * self.head_dim**2)
