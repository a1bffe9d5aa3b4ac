"""HGRN2: a linear recurrence whose state is widened to a matrix, and whose keys are what the forget gate lets go."""

from typing import Any

import jax
import jax.numpy as jnp

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.gated_memory import MemoryState, empty_memory
from seqzoo.nn import BoundedGate, Linear, RMSNorm


@register("hgrn2")
class HGRN2(Mixer):
    r"""Gated linear recurrence with state expansion (Qin et al. 2024, arXiv:2404.07904).

        f_t = gamma + (1 - gamma) sigmoid(W_f x_t)        q_t = silu(W_q x_t)        v_t = W_i x_t
        S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T        y_t = W_o rmsnorm(k^-0.5 q_t^T S_t)

    with a lower bound gamma in [0, 1) per key channel; the norm is taken over the values of all heads. Use it in a stack, where
    lower layers follow the last tokens and upper ones keep long memories.

    Args:
      d_model: width of x and y.
      heads: number of memories, each d_model / heads square (the paper's expansion ratio is d_model / heads; 128 in its models).
      lower_bound: gamma. None: learned per channel, at the start index / count of `depth` (0.01 if that is less, or depth is
        not known). A number in [0, 1): fixed.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
      depth: (index, count) of the layer; the index may be traced.
    Raises:
      ValueError: heads does not divide d_model; lower_bound outside [0, 1).
    Cost: time O(t d^2); state 4 d^2 / heads bytes per row, independent of t.
    Paper and flash-linear-attention learn one table of bounds for all layers, the sum over layers 1 to i of a softmax over layers:
    exactly zero in layer 0, never falling with depth. A layer here owns its bound, which starts where the table starts (all logits
    equal: i / count). Initial weights are the framework's (uniform within 1 / sqrt(fan_in)), our choice. The factor k^-0.5, that
    library's, matters only beside the norm's 1e-5.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        lower_bound=None,
        implementation=None,
        depth: tuple[Any, int] | None = None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.q, self.forget, self.v = (Linear(d_model, d_model, **settings) for _ in range(3))
        self.bounded = BoundedGate(d_model, lower_bound, depth=depth, param_dtype=param_dtype)
        self.norm = RMSNorm(d_model, axis="heads", param_dtype=param_dtype)
        self.out = Linear(d_model, d_model, axes=("heads", "embed"), **settings)
        self.sizes, self.implementation = (d_model, heads, d_model // heads), implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        heads = lambda y: y.reshape(*x.shape[:2], *self.sizes[1:])
        q, v = jax.nn.silu(self.q(x)), self.v(x)
        log_forget, k = self.bounded(self.forget(x))
        o, memory = linear_attention(
            heads(q),
            heads(k.astype(q.dtype)),
            heads(v),
            log_decay=heads(log_forget),
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        return self.out(self.norm(o.reshape(*x.shape[:2], -1))), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> MemoryState:
        """An empty memory; `max_length` has no bearing on its size."""
        _, heads, width = self.sizes
        return empty_memory(batch, heads, width, width, self.dtype if dtype is None else dtype)

    def flops(self, batch, length) -> int:
        d_model, heads, width = self.sizes
        return batch * length * (8 * d_model**2 + 4 * heads * width**2)
