"""S4D: a diagonal state-space model per channel, whose states oscillate at frequencies derived from HiPPO."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from seqzoo.mixers.base import register
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.mixers.state_space.base import TimeInvariantMixer
from seqzoo.nn import GatedOutput, read_out, zero_order_hold
from seqzoo.nn.gated_output import Glu
from seqzoo.nn.timestep import DT_MAX, DT_MIN, log_timestep
from seqzoo.specs import Positive, Size

FREQUENCIES = {  # Gu et al. 2022, section 4.3: the imaginary parts of A for n = 0 .. state / 2 - 1, its real parts being -1/2
    "lin": lambda n, state: math.pi * n,
    "inv": lambda n, state: state / math.pi * (state / (2 * n + 1) - 1),
}


@register("s4d")
class S4D(TimeInvariantMixer):
    r"""Diagonal structured state-space model (Gu et al. 2022, arXiv:2206.11893).

        h_t = exp(dt A) * h_{t-1} + (exp(dt A) - 1) / A x_t        A = -exp(r) + i w
        u_t = gelu(2 Re(C^T h_t) + D x_t)        y_t = (W u_t + b) * sigmoid(V u_t + c)

    for each channel of x, with h, A, C in C^(n/2), one of each of n / 2 conjugate pairs, dt and D numbers. Use it for long smooth
    signals: its states span 1 / dt tokens and more, but forget at fixed rates, independent of the content.

    Raises:
      ValueError: state odd; dt_min and dt_max out of order.
    Cost: time O(t d n + t d^2), memory O(t d n): the states of all tokens are written out, four numbers per token, channel and pair
    while training. State 4 d n bytes per row, independent of t.
    Starting values are those of the released minimal code (models/s4/s4d.py): C standard complex normal, D normal. It convolves by
    FFT with K_l = 2 Re sum_j C_j (exp(dt A_j) - 1) / A_j exp(l dt A_j), the same numbers. It trains dt and A without weight decay
    (marked here) and at their own lower learning rate (not here). Its biases are drawn; here they start at zero.
    """

    state: Size = 64
    """n, the number of states per channel, even. The paper uses 64; time and memory are proportional to it."""
    init: Literal["lin", "inv"] = "lin"
    """Frequencies at the start: "lin" w_j = pi j, or "inv" w_j = n / pi (n / (2 j + 1) - 1)."""
    dt_min: Positive = DT_MIN
    """Smallest dt at the start, where dt is log-uniform."""
    dt_max: Positive = DT_MAX
    """Largest dt at the start."""
    glu: Glu = "full"
    """Output of the layer: "full" as above, the released code; "half" u * sigmoid(V u + c); "none" u, which mixes no channels;
    without gelu outside the gate "half2" y * sigmoid(V u + c), "linear" y."""

    shapes = (Shape({}, {"state": 2}, STATE),)

    def setup(self, rngs, depth):
        if self.state % 2:
            raise ValueError(f"state={self.state}: wanted an even number, at least 2")
        shape, axes, dtype = self.state_shape(), ("heads", "state"), self.param_dtype
        frequencies = FREQUENCIES[self.init](jnp.arange(self.state // 2, dtype=dtype), self.state)
        log_dt = log_timestep(rngs.params(), (self.d_model,), dtype, self.dt_min, self.dt_max)
        self.log_dt = nnx.Param(log_dt, axes=("heads",), decay=False)
        self.log_rate = nnx.Param(jnp.full(shape, math.log(0.5), dtype), axes=axes, decay=False)
        self.frequency = nnx.Param(jnp.broadcast_to(frequencies[None], shape), axes=axes, decay=False)
        parts = math.sqrt(0.5) * jax.random.normal(rngs.params(), (2, *shape), dtype)
        self.c_real, self.c_imaginary = (nnx.Param(part, axes=axes) for part in parts)
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (self.d_model,), dtype), axes=("heads",))
        self.out = GatedOutput(self.d_model, self.glu, approximate=False, **self.factory_kwargs(rngs))

    def state_shape(self):
        return (self.d_model, self.state // 2)

    def decay_and_input(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.log_dt[...]), jnp.float32)
        dt, rate = (jnp.exp(p[...].astype(wide)) for p in (self.log_dt, self.log_rate))
        decay, held = zero_order_hold(-rate, self.frequency[...].astype(wide), dt[:, None])
        x = x[..., None].astype(wide)
        return decay, lax.complex(held.real[None, None] * x, held.imag[None, None] * x)

    def output(self, x, real, imaginary):
        c_real, c_imaginary, skip = (p[...].astype(real.dtype) for p in (self.c_real, self.c_imaginary, self.skip))
        y = 2 * (read_out(c_real, real) - read_out(c_imaginary, imaginary)) + skip[None, None] * x.astype(real.dtype)
        return self.out(y.astype(self.dtype or jnp.result_type(x, self.skip[...])))

    def flops(self, batch, length):
        return batch * length * (2 * self.d_model * self.state + self.out.flops_per_token)
