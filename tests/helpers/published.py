"""Shared parts of the tests of published formulas: a perturbed mixer, its weights in float64, and NumPy's half."""

import jax
import numpy as np
from flax import nnx

from seqzoo import mixers

B, T, D = 2, 40, 32


def built(spec):
    """(a mixer, x, the mixer's output for it), every parameter perturbed so that no bias is zero."""
    mixer = mixers.create(spec, D, rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0)
    mixer = jax.tree.map(lambda p: p + 0.1 * noise.standard_normal(p.shape).astype(np.float32), mixer)
    x = noise.standard_normal((B, T, D)).astype(np.float32)
    return mixer, x.astype(np.float64), jax.jit(lambda mixer, x: mixer(x)[0])(mixer, x)


def wide(parameter):
    return np.asarray(parameter[...], np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(linear, x):
    return x @ wide(linear.w) + (0 if linear.b is None else wide(linear.b))


def low_rank(f, x, activation=lambda x: x):
    return affine(f.up, activation(affine(f.down, x))) + (0 if f.bias is None else wide(f.bias))


def recurrent(decay, written):
    """h_t = decay_t h_{t-1} + written_t from h = 0, one token at a time; [b, t, e]."""
    h, history = np.zeros_like(written[:, 0]), []
    for t in range(written.shape[1]):
        h = decay[:, t] * h + written[:, t]
        history.append(h)
    return np.stack(history, axis=1)


def silu(x):
    return x * sigmoid(x)


def rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def split(x, heads):
    return x.reshape(B, T, heads, -1)


def matrix_state(q, k, v, decay):
    """q_t^T S_t for S_t = Diag(decay_t) S_{t-1} + k_t v_t^T from S = 0, one token at a time; decay [b, t, h, k or 1]."""
    s, read = np.zeros((B, q.shape[2], k.shape[3], v.shape[3])), []
    for t in range(T):
        s = decay[:, t, :, :, None] * s + k[:, t, :, :, None] * v[:, t, :, None, :]
        read.append(np.einsum("bhk,bhkv->bhv", q[:, t], s))
    return np.stack(read, axis=1)
