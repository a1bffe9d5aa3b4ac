r"""How the states at the starts of chunks follow from each other, and the gradients of that.

    S_{n+1} = decay_n * S_n + written_n + keys_n^T u_n        u_n = (I - M_n)^{-1} (rest_n + reads_n S_n)

with u only beside a low-rank term: `LowRank` in `inside.py`. All arrays have an axis of chunks before those that `inside.py` names,
and what is None is not there. JAX's own gradient of such a recurrence stacks every term of every step once more; here a step does
only what goes from state to state, and all else is done for all chunks at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..common import implementations
from ..common.xla_cpu import product
from .inside import LowRank, inverse, spread

_dot = functools.partial(product, precision=lax.Precision.HIGHEST)  # states keep all their digits


class Known(NamedTuple):
    """What an earlier pass over the same chunks found, and need not be found again; None: not kept."""

    before: Array | None = None  # the states before each chunk [n, z, k, v], only beside a u
    u: Array | None = None  # [n, z, c, v]


def follow(decay: Array | None, low_rank: LowRank | None, written: Array | None, known: Known, s: Array):
    """The state after the last chunk, those before each, and each chunk's u."""
    if low_rank is not None:
        return _corrected(decay, low_rank, written, known, s)
    return *(_sums(written, s) if decay is None else _faded_sums(decay, written, s)), None


def _sums(written, s):
    """S_{n+1} = S_n + written_n as one product: for a few chunks faster than a loop over them."""
    terms = jnp.concatenate([s[None], written]).reshape(len(written) + 1, -1)
    lower = jnp.asarray(np.tri(len(terms)), s.dtype)
    states = _dot("nm,mx->nx", lower, terms).reshape(-1, *s.shape)
    return states[-1], states[:-1]


@jax.custom_vjp
def _faded_sums(decay, written, s):
    """S_{n+1} = decay_n * S_n + written_n."""
    return _scan(lambda s, x: (_faded(x[0], s) + x[1], s), s, (decay, written))


def _faded_sums_forward(decay, written, s):
    last, before = _faded_sums(decay, written, s)
    return (last, before), (decay, before)


def _faded_sums_backward(residuals, cotangents):
    """R_n = decay_n * R_{n+1} + dS_n: R_{n+1} is the gradient of what chunk n wrote."""
    decay, before = residuals
    d_last, d_before = cotangents
    first, after = _scan(lambda r, x: (_faded(x[0], r) + x[1], r), d_last, (decay, d_before), reverse=True)
    return _to_decay(decay, before, after), after, first


_faded_sums.defvjp(_faded_sums_forward, _faded_sums_backward)


@jax.custom_vjp
def _corrected(decay, low_rank, written, known, s):
    """All of the formula above."""
    return _corrected_forward(decay, low_rank, written, known, s)[0]


def _corrected_forward(decay, low_rank, written, known, s):
    (scores, reads, rest, keys), (before, u) = low_rank, known
    inverses = inverse(scores.reshape(-1, *scores.shape[2:])).reshape(scores.shape)
    found = _dot("nzij,nzjk->nzik", inverses, reads)

    def after(s, u, chunk):
        decay, written, keys = chunk
        s = _faded(decay, s) + _dot("zck,zcv->zkv", keys, u)
        return s if written is None else s + written

    chunks = decay, written, keys
    if u is None:

        def step(s, chunk):
            found, own, *rest = chunk
            u = own + _dot("zck,zkv->zcv", found, s)
            return after(s, u, rest), (s, u)

        own = _dot("nzij,nzjv->nziv", inverses, rest)
        last, (before, u) = _scan(step, s, (found, own, *chunks))
    elif before is None:
        of_u = _dot("nzck,nzcv->nzkv", keys, u)
        last, before, _ = follow(decay, None, of_u if written is None else written + of_u, known, s)
    else:
        last = after(before[-1], u[-1], jax.tree.map(lambda x: x[-1], chunks))
    return (last, before, u), (decay, low_rank, inverses, found, written, before, u)


def _corrected_backward(residuals, cotangents):
    decay, low_rank, inverses, found, written, before, u = residuals

    def step(r, chunk):
        decay, keys, found, d_before, d_u = chunk
        d_u = d_u + _dot("zck,zkv->zcv", keys, r)
        return _faded(decay, r) + d_before + _dot("zck,zcv->zkv", found, d_u), (r, d_u)

    d_last, d_before, d_u = cotangents
    first, (after, d_u) = _scan(step, d_last, (decay, low_rank.keys, found, d_before, d_u), reverse=True)
    d_rest = _dot("nzij,nziv->nzjv", inverses, d_u)
    # To M as if all of it were free: it comes with zeros on and above its diagonal, which take no gradient.
    d_scores, d_reads = _dot("nziv,nzjv->nzij", d_rest, u), _dot("nzcv,nzkv->nzck", d_rest, before)
    d_low_rank = LowRank(d_scores, d_reads, d_rest, _dot("nzcv,nzkv->nzck", u, after))
    return _to_decay(decay, before, after), d_low_rank, None if written is None else after, Known(), first


_corrected.defvjp(_corrected_forward, _corrected_backward)


def _scan(step, start, chunks, reverse=False):
    """A block has few chunks: on CPUs, their steps one after the other cost less than a loop's slices and updates."""
    return lax.scan(step, start, chunks, reverse=reverse, unroll=implementations.on_cpu() or 1)


def _faded(decay, s):
    return s if decay is None else spread(decay, s.shape) * s


def _to_decay(decay, before, after):
    """A decay's gradient, from the states before it and the gradients of those after."""
    return None if decay is None else jax.vjp(lambda decay: _faded(decay, before), decay)[1](after)[0]
