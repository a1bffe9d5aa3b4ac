"""S5: one diagonal state-space model that all channels write to and read from."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from seqzoo.mixers.base import register
from seqzoo.mixers.shapes import Shape
from seqzoo.mixers.state_space.base import TimeInvariantMixer
from seqzoo.nn import GatedOutput, Linear, bilinear, hippo_normal, zero_order_hold
from seqzoo.nn.gated_output import Glu
from seqzoo.nn.timestep import DT_MAX, DT_MIN, log_timestep
from seqzoo.specs import Positive, Size

HIGHEST_REAL = -1e-4  # of eigenvalues that are kept stable: the released code's `clip_eigs`


@register("s5")
class S5(TimeInvariantMixer):
    r"""Simplified state-space layer (Smith et al. 2022, arXiv:2208.04933).

        h_t = exp(dt A) * h_{t-1} + (exp(dt A) - 1) / A * (B x_t)                          (discretization="zoh")
        h_t = (1 + dt A / 2) / (1 - dt A / 2) * h_{t-1} + dt / (1 - dt A / 2) * (B x_t)    (discretization="bilinear")
        u_t = gelu(2 Re(C h_t) + D * x_t)        y_t = u_t * sigmoid(V u_t + c)

    with h, A in C^(n/2), one of each of n / 2 conjugate pairs; B and C complex matrices; dt and D real vectors. Use it where S4D is
    used, with a smaller state: one for all channels, which B and C mix, instead of one per channel.

    Raises:
      ValueError: 2 * blocks does not divide state; dt_min and dt_max out of order.
    Cost: time O(t d n + t d^2); state 4 n bytes per row, independent of t.
    Starting values are those of the released code: with V the eigenvectors, B = V^* B' and C = C' V for B' real and C' complex, of
    variance 1 / n in each real part; D normal. It trains A, B and dt without weight decay (marked here) and at their own, lower
    learning rate (not here).
    """

    state: Size | None = None
    """n, the number of states; None: d_model."""
    blocks: Size = 8
    """Number of blocks of the block-diagonal matrix whose eigenvalues A starts at, each the normal part of a HiPPO-LegS matrix of
    n / blocks, which must be even."""
    stable: bool = True
    """Keeps the real parts of A at or below -1e-4, so that no state grows: `clip_eigs` of the released code, which recommends it
    for rows of unbounded length. False is safe only for short rows."""
    dt_min: Positive = DT_MIN
    """Smallest dt at the start, where dt is log-uniform."""
    dt_max: Positive = DT_MAX
    """Largest dt at the start."""
    glu: Glu = "half"
    """Output of the layer: "half" as above, "full" (W u + b) * sigmoid(V u + c), "none" u; without gelu outside the gate, with
    z = 2 Re(C h) + D * x, "half2" z * sigmoid(V gelu(z) + c), "linear" z. The released code calls these `half_glu1`, `full_glu`,
    `gelu`, `half_glu2`, and, as a layer of its own, `S5SSM`."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """Input held for a step (zero-order hold), or the trapezoidal rule, which needs no exponential."""

    shapes = (Shape({"blocks": 8}, {"state": 16}),)

    def setup(self, rngs, depth):
        d_model, dtype, kwargs = self.d_model, self.param_dtype, self.factory_kwargs(rngs)
        n = d_model if self.state is None else self.state
        if n % (2 * self.blocks):
            raise ValueError(
                f"state={n} and blocks={self.blocks}: wanted 2 * blocks to divide state, for conjugate pairs in every block"
            )
        self.pairs = n // 2
        eigenvalues, vectors = hippo_normal(n // self.blocks)
        real, imaginary = (jnp.asarray(np.tile(part, self.blocks), dtype) for part in (np.real(eigenvalues), np.imag(eigenvalues)))
        self.real, self.imaginary = (nnx.Param(part, axes=("heads",), decay=False) for part in (real, imaginary))
        log_dt = log_timestep(rngs.params(), (self.pairs,), dtype, self.dt_min, self.dt_max)
        self.log_dt = nnx.Param(log_dt, axes=("heads",), decay=False)
        drawn = jax.nn.initializers.lecun_normal()(rngs.params(), (n, 3 * d_model), jnp.promote_types(dtype, jnp.float32))
        b, c_real, c_imaginary = jnp.split(drawn, 3, axis=1)
        b, c = in_eigenbasis(vectors.conj(), b), in_eigenbasis(vectors, lax.complex(c_real, c_imaginary))
        fixed = lambda w: {"init": lambda key, shape, dtype: w.astype(dtype), **kwargs}
        self.b_real, self.b_imaginary = (Linear(d_model, self.pairs, decay=False, **fixed(w.T)) for w in (b.real, b.imag))
        self.c_real, self.c_imaginary = (Linear(self.pairs, d_model, axes=("heads", "embed"), **fixed(w)) for w in (c.real, c.imag))
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (d_model,), dtype), axes=("embed",))
        self.out = GatedOutput(d_model, self.glu, approximate=True, **kwargs)

    def state_shape(self):
        return (self.pairs,)

    def decay_and_input(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.log_dt[...]), jnp.float32)
        real, imaginary, log_dt = (p[...].astype(wide) for p in (self.real, self.imaginary, self.log_dt))
        real = jnp.minimum(real, HIGHEST_REAL) if self.stable else real
        discretize = zero_order_hold if self.discretization == "zoh" else bilinear
        decay, held = discretize(real, imaginary, jnp.exp(log_dt))
        return decay, held[None, None] * lax.complex(*(b(x).astype(wide) for b in (self.b_real, self.b_imaginary)))

    def output(self, x, real, imaginary):
        narrow = jnp.result_type(x, self.skip[...])
        y = 2 * (self.c_real(real.astype(narrow)) - self.c_imaginary(imaginary.astype(narrow)))
        return self.out(y + self.skip[...].astype(y.dtype)[None, None] * x.astype(y.dtype))

    def flops(self, batch, length):
        return batch * length * (8 * self.d_model * self.pairs + self.out.flops_per_token)


def in_eigenbasis(vectors: np.ndarray, w: Array) -> Array:
    """[blocks * k, d] -> [blocks * m, d]: each block of k rows combined by the columns of vectors [k, m]."""
    complex_dtype = jnp.promote_types(w.dtype, jnp.complex64)
    blocks = w.reshape(-1, vectors.shape[0], w.shape[1]).astype(complex_dtype)
    return jnp.einsum("km,ckd->cmd", jnp.asarray(vectors, complex_dtype), blocks).reshape(-1, w.shape[1])
