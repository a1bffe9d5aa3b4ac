"""LRU: a linear recurrence with complex eigenvalues, drawn on a ring and kept inside the unit circle."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from pydantic import Field

from seqzoo.mixers.base import register
from seqzoo.mixers.shapes import Shape
from seqzoo.mixers.state_space.base import TimeInvariantMixer
from seqzoo.nn import Linear
from seqzoo.specs import Positive, Size

# Orvieto et al. 2023, appendix A
B_INIT = jax.nn.initializers.variance_scaling(0.5, "fan_in", "normal")
C_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")

Radius = Annotated[float, Field(ge=0, le=1)]


@register("lru")
class LRU(TimeInvariantMixer):
    r"""Linear recurrent unit (Orvieto et al. 2023, arXiv:2303.06349).

        h_t = lambda * h_{t-1} + gamma * (B x_t)        lambda = exp(-exp(nu) + i exp(theta))        gamma = exp(g)
        y_t = Re(C h_t) + D * x_t

    with h, lambda in C^n, B and C complex matrices, and nu, theta, g, D real vectors. Use it for long smooth signals: it is linear
    and forgets at fixed rates, so only the channel mixers between such layers can depend on the content.

    Raises:
      ValueError: radii out of order.
    Cost: time O(t d n); state 8 n bytes per row, independent of t.
    gamma starts at sqrt(1 - |lambda|^2), which gives h the variance of B x, and is then learned on its own. All starting values are
    drawn as in the paper's code (appendix A): B, C and D are normal, with variance 1 / 2d, 1 / n and 1 in each real part.
    """

    state: Size | None = None
    """n, the number of complex states; None: d_model."""
    r_min: Radius = 0.0
    """Smallest radius of the ring on which lambda is uniform at the start."""
    r_max: Radius = 1.0
    """Largest radius, more than r_min. The defaults are those of the paper's code; with radii nearer to 1, which the paper tunes,
    states remember for longer."""
    max_phase: Positive = 2 * math.pi
    """Radians below which angles are uniform at the start. The paper uses pi / 10 for its longest rows, 16k tokens."""

    shapes = (Shape({}, {"state": 1}),)

    def setup(self, rngs, depth):
        if self.r_min >= self.r_max:
            raise ValueError(f"r_min={self.r_min} and r_max={self.r_max}: wanted 0 <= r_min < r_max <= 1")
        self.state_dim = n = self.d_model if self.state is None else self.state
        kwargs = self.factory_kwargs(rngs)
        self.b_real, self.b_imaginary = (Linear(self.d_model, n, init=B_INIT, **kwargs) for _ in range(2))
        self.c_real, self.c_imaginary = (Linear(n, self.d_model, axes=("heads", "embed"), init=C_INIT, **kwargs) for _ in range(2))
        eigenvalues = ring(rngs.params(), n, self.r_min, self.r_max, self.max_phase)
        self.nu, self.theta, self.g = (nnx.Param(p.astype(self.param_dtype), axes=("heads",), decay=False) for p in eigenvalues)
        skip = jax.random.normal(rngs.params(), (self.d_model,), self.param_dtype)
        self.skip = nnx.Param(skip, axes=("embed",), decay=False)

    def state_shape(self):
        return (self.state_dim,)

    def decay_and_input(self, x):
        wide = jnp.promote_types(jnp.result_type(x, self.nu[...]), jnp.float32)
        radius, angle, gamma = (jnp.exp(p[...].astype(wide)) for p in (self.nu, self.theta, self.g))
        radius = jnp.exp(-radius)
        parts = (gamma[None, None] * b(x).astype(wide) for b in (self.b_real, self.b_imaginary))
        return lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle)), lax.complex(*parts)

    def output(self, x, real, imaginary):
        narrow = jnp.result_type(x, self.skip[...])
        y = self.c_real(real.astype(narrow)) - self.c_imaginary(imaginary.astype(narrow))
        return y + self.skip[...].astype(y.dtype)[None, None] * x.astype(y.dtype)

    def flops(self, batch, length):
        return 8 * batch * length * self.d_model * self.state_dim


def ring(key: Array, n: int, r_min: float, r_max: float, max_phase: float) -> tuple[Array, Array, Array]:
    """(nu, theta, g) [n] float32: n eigenvalues uniform on the ring of radii r_min to r_max, and their normalisation."""
    tiny, digit = jnp.finfo(jnp.float32).tiny, jnp.finfo(jnp.float32).eps
    draw, turn = jax.random.uniform(key, (2, n), jnp.float32)
    square = jnp.clip(draw * (r_max**2 - r_min**2) + r_min**2, tiny, 1 - digit)  # 0 and 1 have no logarithm, or one of 0
    theta = jnp.log(max_phase * jnp.maximum(turn, tiny))
    return jnp.log(-0.5 * jnp.log(square)), theta, 0.5 * jnp.log1p(-square)
