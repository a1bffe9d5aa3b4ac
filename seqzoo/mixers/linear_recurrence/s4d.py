"""S4D: a diagonal state-space model per channel, whose states ring at frequencies that HiPPO suggests."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import ComplexRecurrence
from seqzoo.nn import GatedOutput, read_out, zero_order_hold
from seqzoo.nn.timestep import DT_MAX, DT_MIN, log_timestep
from seqzoo.specs import choice

FREQUENCIES = {  # Gu et al. 2022, section 4.3: the imaginary parts of A for n = 0 .. state / 2 - 1, its real parts being -1/2
    "lin": lambda n, state: math.pi * n,
    "inv": lambda n, state: state / math.pi * (state / (2 * n + 1) - 1),
}


@register("s4d")
class S4D(ComplexRecurrence):
    r"""Diagonal structured state-space model (Gu et al. 2022, arXiv:2206.11893).

        h_t = exp(dt A) * h_{t-1} + (exp(dt A) - 1) / A x_t        A = -exp(r) + i w
        u_t = gelu(2 Re(C^T h_t) + D x_t)        y_t = (W u_t + b) * sigmoid(V u_t + c)

    for each channel of x, with h, A, C in C^(n/2), one of each of n / 2 conjugate pairs, dt and D numbers. Use it for long smooth
    signals: its memories span 1 / dt tokens and more, but forget at fixed rates, whatever the content.

    Args:
      d_model: width of x and y.
      state: n, even. The paper takes 64; time and memory are in proportion to it.
      init: frequencies at the start: "lin" w_j = pi j, or "inv" w_j = n / pi (n / (2 j + 1) - 1).
      dt_min, dt_max: range of dt at the start, log-uniform.
      glu: what follows the state-space model: "full" as above, the released code; "half" u * sigmoid(V u + c); "none" y = u, which
        mixes no channels.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: state odd or < 2; dt_min and dt_max out of order; unknown init or glu.
    Cost: time O(t d n + t d^2), memory O(t d n): the states of all tokens are written out, four numbers per token, channel and pair
    while training. State 4 d n bytes per row, independent of t.
    Starting values are those of the released minimal code (models/s4/s4d.py): C standard complex normal, D normal. It convolves by
    FFT with K_l = 2 Re sum_j C_j (exp(dt A_j) - 1) / A_j exp(l dt A_j), the same numbers. It trains dt and A without weight decay
    (marked here) and at their own lower learning rate (not here). Its biases are drawn; here they start at zero.
    """

    def __init__(
        self,
        d_model,
        *,
        state=64,
        init="lin",
        dt_min=DT_MIN,
        dt_max=DT_MAX,
        glu="full",
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if state < 2 or state % 2:
            raise ValueError(f"state={state}: wanted an even number, at least 2")
        shape, axes = (d_model, state // 2), ("heads", "state")
        frequencies = FREQUENCIES[choice("init", init, FREQUENCIES)](jnp.arange(state // 2, dtype=param_dtype), state)
        self.log_dt = nnx.Param(log_timestep(rngs.params(), (d_model,), param_dtype, dt_min, dt_max), axes=("heads",), decay=False)
        self.log_rate = nnx.Param(jnp.full(shape, math.log(0.5), param_dtype), axes=axes, decay=False)
        self.frequency = nnx.Param(jnp.broadcast_to(frequencies[None], shape), axes=axes, decay=False)
        planes = math.sqrt(0.5) * jax.random.normal(rngs.params(), (2, *shape), param_dtype)
        self.c_real, self.c_imaginary = (nnx.Param(plane, axes=axes) for plane in planes)
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (d_model,), param_dtype), axes=("heads",))
        self.output = GatedOutput(d_model, glu, approximate=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.sizes, self.implementation = (d_model, *shape), implementation
        self.dtype, self.out_dtype = param_dtype if dtype is None else dtype, dtype

    def gates(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.log_dt[...]), jnp.float32)
        dt, rate = (jnp.exp(p[...].astype(wide)) for p in (self.log_dt, self.log_rate))
        decay, held = zero_order_hold(-rate, self.frequency[...].astype(wide), dt[:, None])
        x = x[..., None].astype(wide)
        return decay, lax.complex(held.real[None, None] * x, held.imag[None, None] * x)

    def read(self, x, real, imaginary):
        c_real, c_imaginary, skip = (p[...].astype(real.dtype) for p in (self.c_real, self.c_imaginary, self.skip))
        y = 2 * (read_out(c_real, real) - read_out(c_imaginary, imaginary)) + skip[None, None] * x.astype(real.dtype)
        return self.output(y.astype(self.out_dtype or jnp.result_type(x, self.skip[...])))

    def flops(self, batch, length) -> int:
        _, d_model, pairs = self.sizes
        return batch * length * (4 * d_model * pairs + self.output.flops_per_token)
