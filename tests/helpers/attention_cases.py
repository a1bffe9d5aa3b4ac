"""Shared parts of the attention tests: inputs, packed rows, the oracle, and values with gradients."""

import jax
import numpy as np

from seqzoo.kernels.attention import attention

IMPLEMENTATIONS = ("reference", "blockwise")
SCORES = (("softmax", 0.0), ("sigmoid", -2.0))
HEADS = (4, 2, 1)  # h, hk, hv


def inputs(b=2, t=70, heads=HEADS, widths=(6, 5), dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    h, hk, hv = heads
    k, v = widths
    return tuple(rng.normal(size=(b, t, n, d)).astype(dtype) for n, d in ((h, k), (hk, k), (hv, v)))


def ids_of(lengths):
    """[t] int32 from (id, length) runs."""
    return np.concatenate([np.full(n, i, np.int32) for i, n in lengths])


# 70 tokens: leading, interior and trailing padding; lengths 1, 2 and around the block of 32; neighbours that repeat an id later.
PACKED = np.stack(
    [
        ids_of([(0, 2), (1, 1), (2, 2), (0, 1), (1, 31), (0, 2), (1, 3), (3, 24), (0, 4)]),
        ids_of([(5, 32), (2, 33), (5, 1), (0, 1), (5, 2), (9, 1)]),
    ]
)


def oracle(q, k, v, *, scores="softmax", bias=0.0, window=None, segment_ids=None):
    """Every query by itself, in float64, over a list of its document's real tokens."""
    b, t, h, width = q.shape
    o = np.zeros((b, t, h, v.shape[3]))
    for row in range(b):
        document, last = [], 0
        for i in range(t):
            now = 1 if segment_ids is None else int(segment_ids[row, i])
            if now == 0:
                continue
            if last not in (0, now):
                document = []
            last = now
            document.append(i)
            past = document if window is None else document[-window:]
            for head in range(h):
                keys = k[row, past, head // (h // k.shape[2])]
                values = v[row, past, head // (h // v.shape[2])]
                s = keys @ q[row, i, head] / np.sqrt(width)
                w = np.exp(s - s.max()) / np.exp(s - s.max()).sum() if scores == "softmax" else 0.5 * (1 + np.tanh((s + bias) / 2))
                o[row, i, head] = w @ values
    return o


def value_and_gradients(q, k, v, cotangent, **settings):
    def f(q, k, v):
        return attention(q, k, v, **settings)[0]

    @jax.jit
    def run(q, k, v, cotangent):
        o, pull = jax.vjp(f, q, k, v)
        return o, pull(cotangent)

    return run(q, k, v, cotangent)
