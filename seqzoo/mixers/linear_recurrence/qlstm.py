"""qLSTM: an LSTM whose gates see the present alone, so that all tokens can be computed at once."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import BranchedRecurrence, cells
from seqzoo.nn import Linear, ShortConvolution

NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


@register("qlstm")
class QLSTM(BranchedRecurrence):
    r"""Quasi-LSTM of the dynamical systems framework (Sieber et al. 2024, arXiv:2405.15731).

        u = conv(W_x x)        f, i, o = W_f u + b_f, W_i u + b_i, W_o u + b_o
        h_t = a_t * h_{t-1} + sigmoid(i_t) * u_t        y_t = W_out [gelu(W_y x_t) * sigmoid(o_t) * h_t]

    with a_t = sigmoid(-f_t)^max(alpha, 0), the reversed sigmoid, or sigmoid(f_t). Use it as the plain gated recurrence beside
    state-space models: its gates for keeping and writing are two, theirs are coupled.

    Args:
      d_model: width of x and y.
      expand: cells e over d_model.
      conv_size: taps of the short convolution, which no activation follows.
      reversed: whether the forget gate is the reversed sigmoid, with alpha learned from 1: in form, the decay of Mamba.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: expand leaves no cell; conv_size < 1.
    Cost: time O(t d e + t e^2); state 4 e bytes and conv_size - 1 inputs per row, independent of t.
    The paper's qLSTM has the plain sigmoid, and the reversed one is its proposal; the released code's default is the latter, as is
    ours. Weights start normal, with deviation 1 / sqrt(fan_in), as in that code; it draws the gates' biases, ours start at zero.
    """

    approximate_gelu = False

    def __init__(
        self,
        d_model,
        *,
        expand=2.0,
        conv_size=4,
        reversed=True,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = cells(d_model, expand)
        settings = {"init": NORMAL, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.linear_x, self.linear_y = (Linear(d_model, e, **settings) for _ in range(2))
        self.conv_1d = ShortConvolution(e, conv_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        gates = (Linear(e, e, axes=(None, "heads"), bias=True, **settings) for _ in range(3))
        self.forget, self.input, self.output = gates
        self.alpha = nnx.Param(jnp.ones((1,), param_dtype), axes=(None,), decay=False) if reversed else None
        self.linear_out = Linear(e, d_model, axes=("heads", "embed"), **settings)
        self.sizes, self.implementation = (d_model, e), implementation
        self.dtype = param_dtype if dtype is None else dtype

    def gates(self, u, state, segment_ids):
        wide = jnp.promote_types(u.dtype, jnp.float32)
        forget, write = self.forget(u).astype(wide), jax.nn.sigmoid(self.input(u).astype(wide))
        if self.alpha is None:
            return jax.nn.log_sigmoid(forget), write * u.astype(wide)
        power = jax.nn.relu(self.alpha[...].astype(wide))[None, None]
        return power * jax.nn.log_sigmoid(-forget), write * u.astype(wide)

    def read(self, u, h):
        return jax.nn.sigmoid(self.output(u).astype(h.dtype)) * h

    def flops(self, batch, length) -> int:
        d_model, e = self.sizes
        return 6 * batch * length * e * (d_model + e)
