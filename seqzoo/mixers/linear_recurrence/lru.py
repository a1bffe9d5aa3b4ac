"""LRU: a linear recurrence with complex eigenvalues, drawn on a ring and kept inside the unit circle."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import ComplexRecurrence
from seqzoo.nn import Linear

# Orvieto et al. 2023, appendix A
B_INIT = jax.nn.initializers.variance_scaling(0.5, "fan_in", "normal")
C_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")


@register("lru")
class LRU(ComplexRecurrence):
    r"""Linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349).

        h_t = lambda * h_{t-1} + gamma * (B x_t)        lambda = exp(-exp(nu) + i exp(theta))        gamma = exp(g)
        y_t = Re(C h_t) + D * x_t

    with h, lambda in C^n, B and C complex matrices, and nu, theta, g, D real vectors. Use it for long smooth signals: it is linear
    and forgets at fixed rates, so whatever depends on content must come from the channel mixers between such layers.

    Args:
      d_model: width of x and y.
      state: n; None is d_model.
      r_min, r_max: 0 <= r_min < r_max <= 1; at the start lambda is uniform on the ring between these radii. The defaults are
        those of the paper's code; nearer to 1, which is what the paper tunes, memories are longer.
      max_phase: > 0, radians; at the start angles are uniform below it. The paper takes pi / 10 for its longest rows, 16k tokens.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: state < 1; radii out of order or outside [0, 1]; max_phase <= 0.
    Cost: time O(t d n); state 8 n bytes per row, independent of t.
    gamma starts at sqrt(1 - |lambda|^2), which gives h the variance of B x, and is then learned on its own. All starting values are
    drawn as in the paper's code (appendix A): B, C and D are normal, with variance 1 / 2d, 1 / n and 1 in each real part.
    """

    def __init__(
        self,
        d_model,
        *,
        state=None,
        r_min=0.0,
        r_max=1.0,
        max_phase=2 * math.pi,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        n = d_model if state is None else state
        if n < 1:
            raise ValueError(f"state={n}: wanted at least 1")
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"r_min={r_min} and r_max={r_max}: wanted 0 <= r_min < r_max <= 1")
        if max_phase <= 0:
            raise ValueError(f"max_phase={max_phase}: wanted more than 0 radians")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.b_real, self.b_imaginary = (Linear(d_model, n, init=B_INIT, **settings) for _ in range(2))
        self.c_real, self.c_imaginary = (Linear(n, d_model, axes=("heads", "embed"), init=C_INIT, **settings) for _ in range(2))
        eigenvalues = ring(rngs.params(), n, r_min, r_max, max_phase)
        self.nu, self.theta, self.g = (nnx.Param(p.astype(param_dtype), axes=("heads",), decay=False) for p in eigenvalues)
        self.skip = nnx.Param(jax.random.normal(rngs.params(), (d_model,), param_dtype), axes=("embed",), decay=False)
        self.sizes, self.implementation, self.dtype = (d_model, n), implementation, param_dtype if dtype is None else dtype

    def gates(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.nu[...]), jnp.float32)
        radius, angle, gamma = (jnp.exp(p[...].astype(wide)) for p in (self.nu, self.theta, self.g))
        radius = jnp.exp(-radius)
        written = (gamma[None, None] * b(x).astype(wide) for b in (self.b_real, self.b_imaginary))
        return lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle)), lax.complex(*written)

    def read(self, x, real, imaginary):
        narrow = jnp.result_type(x, self.skip[...])
        y = self.c_real(real.astype(narrow)) - self.c_imaginary(imaginary.astype(narrow))
        return y + self.skip[...].astype(y.dtype)[None, None] * x.astype(y.dtype)

    def flops(self, batch, length) -> int:
        return 8 * batch * length * self.sizes[0] * self.sizes[1]


def ring(key: Array, n: int, r_min: float, r_max: float, max_phase: float) -> tuple[Array, Array, Array]:
    """(nu, theta, g) [n] float32: n eigenvalues uniform on the ring of radii r_min to r_max, and their normalisation."""
    tiny, digit = jnp.finfo(jnp.float32).tiny, jnp.finfo(jnp.float32).eps
    draw, turn = jax.random.uniform(key, (2, n), jnp.float32)
    square = jnp.clip(draw * (r_max**2 - r_min**2) + r_min**2, tiny, 1 - digit)  # 0 and 1 have no logarithm, or one of 0
    theta = jnp.log(max_phase * jnp.maximum(turn, tiny))
    return jnp.log(-0.5 * jnp.log(square)), theta, 0.5 * jnp.log1p(-square)
