"""HGRN: a forget gate with a lower bound that grows with depth, so that upper layers remember for long."""

import jax

from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import RecurrentMixer
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import Linear, LowerBoundedGate, RMSNorm
from seqzoo.nn.layer import inner_width
from seqzoo.specs import Expansion, Rate


@register("hgrn")
class HGRN(RecurrentMixer):
    r"""Hierarchically gated recurrent network, with real hidden units (Qin et al. 2023, arXiv:2311.04823).

        a_t = gamma + (1 - gamma) sigmoid(W_f x_t)        c_t = silu(W_i x_t)
        h_t = a_t * h_{t-1} + (1 - a_t) * c_t        y_t = W_o [silu(W_g x_t) * rmsnorm(h_t)]

    with a lower bound gamma in [0, 1) per unit. Use it in a stack, whose upper layers then remember for longer than its lower ones.

    Raises:
      ValueError: expand leaves no hidden unit.
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    The paper's hidden units are complex, and rotate by a learned angle per step; those of flash-linear-attention, followed here,
    are real. Both learn one table of bounds for all layers: gamma of layer i is the sum over layers 1 to i of a softmax over
    layers, zero in layer 0 and never falling with depth. A layer here owns its bound, the sigmoid of a logit: our choice. It starts
    where the table starts (equal logits: i / count), and nothing keeps layers in order later. Initial weights are uniform within
    1 / sqrt(fan_in), our choice too; that code draws them from N(0, 0.02^2).
    """

    expand: Expansion = 1.0
    """Number e of hidden units, as a multiple of d_model."""
    lower_bound: Rate | None = None
    """gamma, fixed. None: learned per unit, initially index / count of the layer (0.01 if that is less, or depth is unknown)."""

    log_decay = True
    shapes = (Shape({}, {"expand": 1}),)

    def setup(self, rngs, depth):
        self.hidden_size = inner_width(self.d_model, self.expand)
        kwargs = self.factory_kwargs(rngs)
        self.forget, self.input, self.gate = (Linear(self.d_model, self.hidden_size, **kwargs) for _ in range(3))
        self.bounded = LowerBoundedGate(self.hidden_size, self.lower_bound, depth=depth, param_dtype=self.param_dtype)
        self.norm = RMSNorm(self.hidden_size, axis="heads", param_dtype=self.param_dtype)
        self.out = Linear(self.hidden_size, self.d_model, axes=("heads", "embed"), **kwargs)

    def hidden_shape(self):
        return (self.hidden_size,)

    def decay_and_input(self, x):
        log_decay, weight = self.bounded(self.forget(x))
        return log_decay, weight * jax.nn.silu(self.input(x)).astype(weight.dtype)

    def output(self, x, h):
        gate = jax.nn.silu(self.gate(x))
        return self.out(gate * self.norm(h).astype(gate.dtype))

    def flops(self, batch, length):
        return 8 * batch * length * self.d_model * self.hidden_size
