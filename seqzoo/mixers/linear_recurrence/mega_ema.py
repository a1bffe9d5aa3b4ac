"""MEGA's moving average: every channel smoothed at several learned rates."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import Recurrence
from seqzoo.nn import read_out


@register("mega_ema")
class MegaEMA(Recurrence):
    r"""Damped multi-dimensional exponential moving average, the recurrent half of MEGA (Ma et al. 2022, arXiv:2209.10655).

        h_t = (1 - p * q) * h_{t-1} + p * beta x_t        p = sigmoid(alpha)        q = sigmoid(delta)
        y_t = silu(gamma^T h_t / sqrt(n) + omega x_t)

    for each channel, with h, alpha, beta, gamma, delta in R^n and omega a number. Use it before attention, as MEGA does, or for
    signals that are to be smoothed: it is linear but for the silu, mixes no channels, and forgets at fixed rates.

    Args:
      d_model: width of x and y.
      state: n, averages per channel. The paper takes 16.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: state < 1.
    Cost: time and memory O(t d n), all states being written out; state 4 d n bytes per row, independent of t.
    All starting values are those of the released code: alpha and delta normal with deviation 0.2, beta 1, -1, 1, ... with 0.02,
    gamma and omega standard normal. That code can also cut the average off after some tokens, and run it both ways; not here.
    """

    def __init__(self, d_model, *, state=16, implementation=None, dtype=None, param_dtype=jnp.float32, rngs):
        if state < 1:
            raise ValueError(f"state={state}: wanted at least 1")
        axes = ("heads", "state")
        normal = lambda *shape: jax.random.normal(rngs.params(), shape, param_dtype)
        self.alpha, self.delta = (nnx.Param(0.2 * normal(d_model, state), axes=axes, decay=False) for _ in range(2))
        signs = 1 - 2 * (jnp.arange(state) % 2).astype(param_dtype)
        self.beta = nnx.Param(signs[None] + 0.02 * normal(d_model, state), axes=axes)
        self.gamma = nnx.Param(normal(d_model, state), axes=axes)
        self.omega = nnx.Param(normal(d_model), axes=("heads",))
        self.sizes, self.implementation = (d_model, d_model, state), implementation
        self.dtype, self.out_dtype = param_dtype if dtype is None else dtype, dtype

    def gates(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.alpha[...]), jnp.float32)
        p, q = (jax.nn.sigmoid(rate[...].astype(wide)) for rate in (self.alpha, self.delta))
        weight = p * self.beta[...].astype(wide)
        return (1 - p * q)[None, None], weight[None, None] * x[..., None].astype(wide)

    def read(self, x, h):
        gamma = self.gamma[...].astype(h.dtype) * self.sizes[2] ** -0.5
        y = read_out(gamma, h) + self.omega[...].astype(h.dtype)[None, None] * x.astype(h.dtype)
        return jax.nn.silu(y).astype(self.out_dtype or jnp.result_type(x, self.omega[...]))

    def flops(self, batch, length) -> int:
        _, d_model, n = self.sizes
        return 2 * batch * length * d_model * n
