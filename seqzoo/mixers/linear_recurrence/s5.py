"""S5: one diagonal state-space model that all channels write to and read from."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import ComplexRecurrence
from seqzoo.nn import GatedOutput, Linear, hippo_normal, zero_order_hold
from seqzoo.nn.timestep import DT_MAX, DT_MIN, log_timestep

HIGHEST_REAL = -1e-4  # of eigenvalues that are kept stable: the released code's `clip_eigs`


@register("s5")
class S5(ComplexRecurrence):
    r"""Simplified state-space layer (Smith et al. 2022, arXiv:2208.04933).

        h_t = exp(dt A) * h_{t-1} + (exp(dt A) - 1) / A * (B x_t)
        u_t = gelu(2 Re(C h_t) + D * x_t)        y_t = u_t * sigmoid(V u_t + c)

    with h, A in C^(n/2), one of each of n / 2 conjugate pairs; B and C complex matrices; dt and D real vectors. Use it where S4D is
    used, with a smaller memory: one state for all channels, which B and C mix, instead of one per channel.

    Args:
      d_model: width of x and y.
      state: n; None is d_model.
      blocks: of the block-diagonal matrix whose eigenvalues A starts at, each the normal part of a HiPPO-LegS matrix of n / blocks,
        which must be even.
      stable: whether A's real parts are kept at or below -1e-4, so that no state grows: the released code's `clip_eigs`, which it
        recommends for unbounded rows. It may be False where rows are short.
      dt_min, dt_max: range of dt at the start, log-uniform.
      glu: what follows the state-space model: "half" as above, "full" (W u + b) * sigmoid(V u + c), "none" y = u.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: 2 * blocks does not divide state; dt_min and dt_max out of order; unknown glu.
    Cost: time O(t d n + t d^2); state 4 n bytes per row, independent of t.
    Starting values are those of the released code: with V the eigenvectors, B = V^* B' and C = C' V for B' real and C' complex, of
    variance 1 / n in each real part; D normal. It trains A, B and dt without weight decay (marked here) and at their own, lower
    learning rate (not here).
    """

    def __init__(
        self,
        d_model,
        *,
        state=None,
        blocks=8,
        stable=True,
        dt_min=DT_MIN,
        dt_max=DT_MAX,
        glu="half",
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        n = d_model if state is None else state
        if blocks < 1 or n < 2 or n % (2 * blocks):
            raise ValueError(
                f"state={n} and blocks={blocks}: wanted 2 * blocks to divide state, for conjugate pairs in every block"
            )
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        eigenvalues, vectors = hippo_normal(n // blocks)
        real, imaginary = (jnp.asarray(np.tile(part, blocks), param_dtype) for part in (eigenvalues.real, eigenvalues.imag))
        self.real, self.imaginary = (nnx.Param(part, axes=("heads",), decay=False) for part in (real, imaginary))
        self.log_dt = nnx.Param(log_timestep(rngs.params(), (n // 2,), param_dtype, dt_min, dt_max), axes=("heads",), decay=False)
        drawn = jax.nn.initializers.lecun_normal()(rngs.params(), (n, 3 * d_model), jnp.promote_types(param_dtype, jnp.float32))
        b, c_real, c_imaginary = jnp.split(drawn, 3, axis=1)
        b, c = in_eigenbasis(vectors.conj(), b), in_eigenbasis(vectors, lax.complex(c_real, c_imaginary))
        fixed = lambda w: {"init": lambda key, shape, dtype: w.astype(dtype), **settings}
        self.b_real, self.b_imaginary = (Linear(d_model, n // 2, decay=False, **fixed(w.T)) for w in (b.real, b.imag))
        self.c_real, self.c_imaginary = (Linear(n // 2, d_model, axes=("heads", "embed"), **fixed(w)) for w in (c.real, c.imag))
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (d_model,), param_dtype), axes=("embed",))
        self.output = GatedOutput(d_model, glu, approximate=True, **settings)
        self.sizes, self.stable, self.implementation = (d_model, n // 2), stable, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def gates(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.log_dt[...]), jnp.float32)
        real, imaginary, log_dt = (p[...].astype(wide) for p in (self.real, self.imaginary, self.log_dt))
        real = jnp.minimum(real, HIGHEST_REAL) if self.stable else real
        decay, held = zero_order_hold(real, imaginary, jnp.exp(log_dt))
        return decay, held[None, None] * lax.complex(*(b(x).astype(wide) for b in (self.b_real, self.b_imaginary)))

    def read(self, x, real, imaginary):
        narrow = jnp.result_type(x, self.skip[...])
        y = 2 * (self.c_real(real.astype(narrow)) - self.c_imaginary(imaginary.astype(narrow)))
        return self.output(y + self.skip[...].astype(y.dtype)[None, None] * x.astype(y.dtype))

    def flops(self, batch, length) -> int:
        d_model, pairs = self.sizes
        return batch * length * (8 * d_model * pairs + self.output.flops_per_token)


def in_eigenbasis(vectors: np.ndarray, w: Array) -> Array:
    """[blocks * k, d] -> [blocks * m, d]: each block of k rows combined by the columns of vectors [k, m]."""
    complex_dtype = jnp.promote_types(w.dtype, jnp.complex64)
    blocks = w.reshape(-1, vectors.shape[0], w.shape[1]).astype(complex_dtype)
    return jnp.einsum("km,ckd->cmd", jnp.asarray(vectors, complex_dtype), blocks).reshape(-1, w.shape[1])
