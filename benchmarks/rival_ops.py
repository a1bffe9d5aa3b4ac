"""Ops of jax-linear-attention paired with ours, forward and backward on the same arrays, for the kinds that both have."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.rivals import Pair, Peer, Side, Size
from seqzoo.kernels.common import explain
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import delta_rule, l2_normalise
from seqzoo.kernels.selective_scan import selective_scan
from seqzoo.mixers.linear_attention.linear import append_ones
from seqzoo.mixers.linear_attention.mlstm import EPS
from seqzoo.nn import exponential_gates


def _jla(kind: str, width: int = 64) -> Callable[[Size], Pair]:
    """`width`: of keys and values in a head; the heads have d_model channels together."""

    def build(size):
        from jla.ops import linear_attention as other

        b, t, h = size.batch, size.length, size.d_model // width
        keys = jax.random.split(jax.random.key(size.seed), 5)
        q, k, v = (jax.random.normal(key, (b, t, h, width)) for key in keys[:3])
        gate = lambda *shape: jax.nn.log_sigmoid(jax.random.normal(keys[3], shape) + 4.0)
        head, channel = gate(b, t, h), gate(b, t, h, width)
        if kind in DELTAS:
            k = l2_normalise(k, 1e-6)  # both leave the length of keys to the caller
        beta = jax.nn.sigmoid(jax.random.normal(keys[4], (b, t, h)))
        arrays, gates = {
            "simple_gla": ((q, k, v, head), ("g",)),
            "gla": ((q, k, v, channel), ("g",)),
            "rwkv6": ((q, k, v, channel, jax.random.normal(keys[4], (h, width))), ("g", "u")),
            "mlstm": ((q, k, v, head, jax.random.normal(keys[4], (b, t, h))), ("g", "i")),
            "mamba1": (_selective(size, keys), ("dt", "a")),
            "deltanet": ((q, k, v, beta), ("beta",)),
            "gated_deltanet": ((q, k, v, head, beta), ("g", "beta")),
            "kda": ((q, k, v, channel, beta), ("g", "beta")),
        }[kind]
        form = "chunked" if jax.default_backend() == "cpu" else "auto"
        theirs = lambda q, k, v, *rest: other(kind, q, k, v, **dict(zip(gates, rest, strict=True)), impl=form)[0]
        facts = {"shapes": [list(a.shape) for a in arrays]}
        ops = sorted(set(explain(OURS[kind], *arrays)))
        sides = _op_side(OURS[kind], arrays, ops=ops, **facts), _op_side(theirs, arrays, implementation=form, **facts)
        return Pair(*sides, "output and the gradients to all inputs")

    return build


def _selective(size: Size, keys) -> tuple:
    """(C, B, x, dt, A) of Mamba's scan: 2 d_model channels of 16 states."""
    b, t, d, n = size.batch, size.length, 2 * size.d_model, 16
    c, write, x = (jax.random.normal(key, (b, t, width)) for key, width in zip(keys, (n, n, d), strict=False))
    dt = jnp.exp(jax.random.uniform(keys[3], (b, t, d), minval=np.log(1e-3), maxval=np.log(1e-1)))
    return c, write, x, dt, -jnp.tile(jnp.arange(1.0, n + 1)[None], (d, 1))


def _mlstm(q, k, v, g, i):
    """The cell of our mixer, without its projections."""
    gates = exponential_gates(i, g)
    o, _ = linear_attention(q, k * jnp.exp(gates.log_weight)[..., None], append_ones(v), log_decay=gates.log_decay)
    return o[..., :-1] / (jnp.maximum(jnp.abs(o[..., -1]), jnp.exp(-gates.maximum)) + EPS)[..., None]


OURS = {  # in the order of their arguments
    "simple_gla": lambda q, k, v, g: linear_attention(q, k, v, log_decay=g)[0],
    "gla": lambda q, k, v, g: linear_attention(q, k, v, log_decay=g)[0],
    "rwkv6": lambda q, k, v, g, u: linear_attention(q, k, v, log_decay=g, read_before_write=True, bonus=u)[0],
    "mlstm": _mlstm,
    "mamba1": lambda c, b, x, dt, a: selective_scan(x, dt, a, b, c)[0],
    "deltanet": lambda q, k, v, beta: delta_rule(q, k, v, beta)[0],
    "gated_deltanet": lambda q, k, v, g, beta: delta_rule(q, k, v, beta, g)[0],
    "kda": lambda q, k, v, g, beta: delta_rule(q, k, v, beta, g)[0],
}
DELTAS = "deltanet", "gated_deltanet", "kda"


def _op_side(function, arrays, **facts) -> Side:
    executable, planned, seconds = measure.compiled(measure.passes(function, arrays)["forward+backward"], arrays)
    return Side(lambda: (executable(*arrays), None), {"compile_seconds": seconds, "planned_bytes": planned, **facts})


OPS = {f"jla-{kind}": Peer("jax-linear-attention", _jla(kind)) for kind in OURS}
