"""qLSTM: an LSTM whose gates depend on the present token alone, so that all tokens are computed in parallel."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import NORMAL, RecurrentBlockMixer
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import Linear
from seqzoo.specs import Expansion


@register("qlstm")
class QLSTM(RecurrentBlockMixer):
    r"""Quasi-LSTM of the dynamical systems framework (Sieber et al. 2024, arXiv:2405.15731).

        u = conv(W_x x)        f, i, o = W_f u + b_f, W_i u + b_i, W_o u + b_o
        h_t = a_t * h_{t-1} + sigmoid(i_t) * u_t        y_t = W_out [gelu(W_y x_t) * sigmoid(o_t) * h_t]

    with a_t = sigmoid(-f_t)^max(alpha, 0), the reversed sigmoid, or sigmoid(f_t). Use it as the plain gated recurrence to compare
    state-space models with: its gates for forgetting and writing are separate, theirs are coupled.

    Raises:
      ValueError: expand leaves no hidden unit.
    Cost: time O(t d e + t e^2); state 4 e bytes and conv_size - 1 inputs per row, independent of t.
    The paper's qLSTM has the plain sigmoid, and the reversed one is its proposal; the released code's default is the latter, as is
    ours. Weights start normal, with deviation 1 / sqrt(fan_in), as in that code; it draws the gates' biases, ours start at zero.
    """

    expand: Expansion = 2.0
    """Number e of hidden units, as a multiple of d_model."""
    reversed: bool = True
    """Uses the reversed sigmoid as forget gate, with a learned alpha that starts at 1: the form of Mamba's decay."""

    approximate_gelu = False
    shapes = (Shape({}, {"expand": 1}),)

    def setup(self, rngs, depth):
        self.make_layers(rngs, bias=False)

    def make_gates(self, rngs):
        kwargs = {"axes": (None, "heads"), "bias": True, "init": NORMAL, **self.factory_kwargs(rngs)}
        self.forget_gate, self.input_gate, self.output_gate = (
            Linear(self.hidden_size, self.hidden_size, **kwargs) for _ in range(3)
        )
        self.alpha = nnx.Param(jnp.ones((1,), self.param_dtype), axes=(None,), decay=False) if self.reversed else None

    def decay_and_input(self, u, state, segment_ids, positions):
        wide = jnp.promote_types(u.dtype, jnp.float32)
        forget, weight = self.forget_gate(u).astype(wide), jax.nn.sigmoid(self.input_gate(u).astype(wide))
        if self.alpha is None:
            return jax.nn.log_sigmoid(forget), weight * u.astype(wide)
        power = jax.nn.relu(self.alpha[...].astype(wide))[None, None]
        return power * jax.nn.log_sigmoid(-forget), weight * u.astype(wide)

    def read(self, u, h):
        return jax.nn.sigmoid(self.output_gate(u).astype(h.dtype)) * h

    def flops(self, batch, length):
        return 6 * batch * length * self.hidden_size * (self.d_model + self.hidden_size)
