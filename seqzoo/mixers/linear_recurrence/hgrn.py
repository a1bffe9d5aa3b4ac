"""HGRN: a forget gate with a lower bound that grows with depth, so that upper layers remember for long."""

import jax
import jax.numpy as jnp

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import Recurrence, cells
from seqzoo.nn import Linear, RMSNorm
from seqzoo.nn.lower_bounded_gate import LowerBoundedGate


@register("hgrn")
class HGRN(Recurrence):
    r"""Hierarchically gated recurrent network, with real cells (Qin et al. 2023, arXiv:2311.04823).

        a_t = gamma + (1 - gamma) sigmoid(W_f x_t)        c_t = silu(W_i x_t)
        h_t = a_t * h_{t-1} + (1 - a_t) * c_t        y_t = W_o [silu(W_g x_t) * rmsnorm(h_t)]

    with a lower bound gamma in [0, 1) per cell. Use it in a stack, whose upper layers then remember for longer than its lower ones.

    Args:
      d_model: width of x and y.
      expand: cells e over d_model.
      lower_bound: gamma. None: learned per cell, at the start index / count of `depth` (at least 0.01, also if depth is not known).
        A number in [0, 1): fixed.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
      depth: (index, count) of the layer; the index may be traced.
    Raises:
      ValueError: expand leaves no cell; lower_bound outside [0, 1).
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    The paper's cells are complex, and rotate by a learned angle per step; those of flash-linear-attention, followed here, are real.
    Both learn one table of bounds for all layers: gamma of layer i is the sum over layers 1 to i of a softmax over layers, zero in
    layer 0 and never falling with depth. A layer here owns its bound, the sigmoid of a logit: our choice. It starts where the table
    starts (equal logits: i / count), and nothing keeps layers in order later. Initial weights are uniform within 1 / sqrt(fan_in),
    our choice too; that code draws them from N(0, 0.02^2).
    """

    log_decay = True

    def __init__(
        self,
        d_model,
        *,
        expand=1.0,
        lower_bound=None,
        implementation=None,
        depth=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = cells(d_model, expand)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.forget, self.input, self.gate = (Linear(d_model, e, **settings) for _ in range(3))
        self.bounded = LowerBoundedGate(e, lower_bound, depth=depth, param_dtype=param_dtype)
        self.norm = RMSNorm(e, axis="heads", param_dtype=param_dtype)
        self.out = Linear(e, d_model, axes=("heads", "embed"), **settings)
        self.sizes, self.implementation = (d_model, e), implementation
        self.dtype = param_dtype if dtype is None else dtype

    def gates(self, x):
        log_forget, write = self.bounded(self.forget(x))
        return log_forget, write * jax.nn.silu(self.input(x)).astype(write.dtype)

    def read(self, x, h):
        gate = jax.nn.silu(self.gate(x))
        return self.out(gate * self.norm(h).astype(gate.dtype))

    def flops(self, batch, length) -> int:
        d_model, e = self.sizes
        return 8 * batch * length * d_model * e
