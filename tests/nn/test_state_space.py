"""Sampling a diagonal state-space model, and the matrix that it starts at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.tolerances import assert_close
from seqzoo.nn import hippo_normal, zero_order_hold


@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 30.0])
def test_an_input_held_for_a_short_step_keeps_its_digits(size):
    """In float32 against complex128, whose expm1 is exact here; exp(z) - 1 in float32 would be zero at the first size."""
    angle = np.linspace(np.pi / 2, 3 * np.pi / 2, 101)
    real, imaginary = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    decay, held = jax.jit(zero_order_hold)(real, imaginary, jnp.float32(size))
    a = real.astype(np.float64) + 1j * imaginary
    for got, wanted in ((decay, np.exp(np.float64(np.float32(size)) * a)), (held, np.expm1(np.float64(np.float32(size)) * a) / a)):
        for part in (np.real, np.imag):
            assert_close(part(got), part(wanted), scale=float(np.abs(wanted).mean()))


def test_without_decay_inputs_add_up():
    """Also the slopes are finite there."""
    zero = jnp.zeros(3)
    decay, held = zero_order_hold(zero, zero, jnp.float32(0.25))
    assert_close((np.asarray(decay).real, np.asarray(held).real), (np.ones(3), np.full(3, 0.25)))
    slope = jax.grad(lambda real: jnp.sum(jnp.real(zero_order_hold(real, zero, jnp.float32(0.25))[1])))(zero)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("n", [2, 4, 16])
def test_hippo_is_normal_but_for_a_rank_of_one(n):
    """V diag V^* and its conjugate add up to HiPPO-LegS plus p p^T, p_i = sqrt(i + 1/2)."""
    eigenvalues, vectors = hippo_normal(n)
    i = np.arange(n)
    legs = -np.tril(np.sqrt(np.outer(2 * i + 1, 2 * i + 1)), -1) - np.diag(i + 1)
    p = np.sqrt(i + 0.5)
    assert_close(2 * (vectors * eigenvalues @ vectors.conj().T).real, legs + np.outer(p, p), tolerance=1e-12)
    assert_close(np.abs(vectors.conj().T @ vectors), np.eye(n // 2), tolerance=1e-12)
