"""Time-invariant state-space models h' = A h + B x with diagonal A: initial values, discretisation, output."""

import numpy as np
from jax import Array, lax
from jax import numpy as jnp


def zero_order_hold(real: Array, imaginary: Array, dt: Array) -> tuple[Array, Array]:
    """(exp(dt A), (exp(dt A) - 1) / A): factors on the state and on the input, which is held constant for a step of dt.

    Args:
      real, imaginary: parts of A, [...] float32 or wider.
      dt: > 0, of a shape that broadcasts to theirs.
    Returns:
      Two complex [...]. The second is dt where A is 0, and no difference of nearly equal numbers, however short the step.
    """
    x, y = dt * real, dt * imaginary
    grown, cos, sin = jnp.exp(x), jnp.cos(y), jnp.sin(y)
    change = lax.complex(jnp.expm1(x) * cos - 2 * jnp.sin(y / 2) ** 2, grown * sin)  # exp(x + iy) - 1
    square = real**2 + imaginary**2
    some = square > 0
    inverse = lax.complex(real, -imaginary) / jnp.where(some, square, 1)
    held = jnp.where(some, change * inverse, jnp.broadcast_to(dt, x.shape).astype(change.dtype))
    return lax.complex(grown * cos, grown * sin), held


def bilinear(real: Array, imaginary: Array, dt: Array) -> tuple[Array, Array]:
    """((1 + dt A / 2) / (1 - dt A / 2), dt / (1 - dt A / 2)): factors on the state and on the input, by the trapezoidal rule.

    Arguments and results as of `zero_order_hold`; dt A is not 2.
    """
    half = lax.complex(dt * real / 2, dt * imaginary / 2)
    inverse = 1 / (1 - half)
    return (1 + half) * inverse, dt * inverse


def read_out(c: Array, h: Array) -> Array:
    """y_d = sum_n c_dn h_dn: c [d, n], h [b, t, d, n] -> [b, t, d].

    Both factors are given one shape, so that XLA multiplies and sums while it reads h. For a matrix-vector product per channel, XLA
    on CPUs would first transpose h.
    """
    return jnp.einsum("btdn,btdn->btd", h, jnp.broadcast_to(c[None, None], h.shape))


def hippo_normal(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the eigenvalues of HiPPO-LegS' normal part, A_ij = -1/2 [i = j] - sign(i - j) sqrt((i + 1/2) (j + 1/2)).

    They come in conjugate pairs -1/2 +- i w; given are those with negative imaginary parts, the largest w, near n^2 / pi, first.
    For HiPPO see Gu et al. 2020, arXiv:2008.07669, for its normal part Gu et al. 2021, arXiv:2111.00396.

    Args:
      n: even.
    Returns:
      (eigenvalues [n / 2], orthonormal eigenvectors [n, n / 2]), complex128.
    """
    root = np.sqrt(np.arange(n) + 0.5)
    skew = -np.sign(np.subtract.outer(np.arange(n), np.arange(n))) * np.outer(root, root)
    angles, vectors = np.linalg.eigh(-1j * skew)  # i times a Hermitian matrix; sorted, so the negative ones come first
    return -0.5 + 1j * angles[: n // 2], vectors[:, : n // 2]
