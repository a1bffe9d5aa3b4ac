"""MEGA's moving average: every channel smoothed at several learned rates."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import RecurrentMixer
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import read_out
from seqzoo.specs import Size


@register("mega_ema")
class MegaEMA(RecurrentMixer):
    r"""Damped multi-dimensional exponential moving average, the recurrent half of MEGA (Ma et al. 2022, arXiv:2209.10655).

        h_t = (1 - p * q) * h_{t-1} + p * beta x_t        p = sigmoid(alpha)        q = sigmoid(delta)
        y_t = silu(gamma^T h_t / sqrt(n) + omega x_t)

    for each channel, with h, alpha, beta, gamma, delta in R^n and omega a number. Use it before attention, as MEGA does, or for
    signals that should be smoothed: it is linear except for the silu, mixes no channels, and forgets at fixed rates.

    Cost: time and memory O(t d n), because the states of all tokens are stored; state 4 d n bytes per row, independent of t.
    All starting values are those of the released code: alpha and delta normal with deviation 0.2, beta 1, -1, 1, ... with 0.02,
    gamma and omega standard normal. That code can also truncate the average after some tokens, or run it in both directions; not
    here.
    """

    state: Size = 16
    """n, the number of averages per channel. The paper uses 16."""

    shapes = (Shape({}, {"state": 1}, STATE),)

    def setup(self, rngs, depth):
        shape, axes = self.hidden_shape(), ("heads", "state")
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, self.param_dtype)
        self.alpha, self.delta = (nnx.Param(0.2 * normal(*shape), axes=axes, decay=False) for _ in range(2))
        signs = 1 - 2 * (jnp.arange(self.state) % 2).astype(self.param_dtype)
        self.beta = nnx.Param(signs[None] + 0.02 * normal(*shape), axes=axes)
        self.gamma = nnx.Param(normal(*shape), axes=axes)
        self.omega = nnx.Param(normal(self.d_model), axes=("heads",))

    def hidden_shape(self):
        return (self.d_model, self.state)

    def decay_and_input(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.alpha[...]), jnp.float32)
        p, q = (jax.nn.sigmoid(rate[...].astype(wide)) for rate in (self.alpha, self.delta))
        weight = p * self.beta[...].astype(wide)
        return (1 - p * q)[None, None], weight[None, None] * x[..., None].astype(wide)

    def output(self, x, h):
        gamma = self.gamma[...].astype(h.dtype) * self.state**-0.5
        y = read_out(gamma, h) + self.omega[...].astype(h.dtype)[None, None] * x.astype(h.dtype)
        return jax.nn.silu(y).astype(self.dtype or jnp.result_type(x, self.omega[...]))

    def flops(self, batch, length):
        return 2 * batch * length * self.d_model * self.state
