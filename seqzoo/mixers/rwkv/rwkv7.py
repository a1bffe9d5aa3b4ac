"""RWKV-7's time mixing: a delta rule whose removal key, beta and decay are each a vector, and the value residual."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_attention.delta_rule import l2_normalise
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import Implementation, empty_state, widths
from seqzoo.mixers.shapes import square_heads
from seqzoo.nn import LayerNorm, Linear, LowRank, mixes, token_shift
from seqzoo.specs import Expansion, Positive, Size

MIXES = {"receptance": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}  # and the powers they start with
FASTEST = math.exp(-0.5)  # no channel keeps less than exp(-0.61) = 0.545 of a state per token


class RWKV7State(NamedTuple):
    """Recurrent state, and the last real token."""

    tail: Array  # [b, 1, d_model]
    matrix: Array  # [b, h, k, v]
    segment: Array  # [b] int32


class FirstValue(NamedTuple):
    """Input of later layers: the values of the stack's first RWKV-7 layer."""

    value: Array  # [b, t, h v]
    known: Array  # [] bool, whether that layer has been passed


@register("rwkv7")
class RWKV7(Mixer):
    r"""Time mixing of RWKV-7, Goose (Peng et al. 2025, arXiv:2503.14456).

        S_t = Diag(w_t) S_{t-1} - (a_t * u_t) (u_t^T S_{t-1}) + k~_t v~_t^T        w_t = exp(-e^{-1/2} sigmoid(f_w(x^w_t)))
        y_t = W_o [g_t * (groupnorm(S_t^T r_t) + (\sum_j r_t * rho * k~_t) v~_t)]        r, k, v = W x^r, W x^k, W x^v
        u_t = kappa * k_t / |kappa * k_t|        k~_t = k_t * (1 + (a_t - 1) * alpha)        a_t = sigmoid(f_a(x^a_t))
        v~_t = v_t + (v'_t - v_t) * sigmoid(f_v(x^v_t))        g_t = sigmoid(x^g_t A) B        x^i_t = x_t + (x_{t-1} - x_t) * mu_i

    with f(x) = c + act(x A) B, act tanh for w and nothing else; v' are the values v of the stack's first RWKV-7 layer, which
    the backbone passes on; the first such layer, or one that is used alone, has v~ = v. Use it for state tracking: removing and
    writing have separate strengths.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and one input per row, independent of t.
    Initial values are those of the authors' code (RWKV-LM, "x070"), except, as in flash-linear-attention: W_r and W_v orthogonal,
    W_k orthogonal times 0.1. Factors A are zero, B orthogonal times 0.1, W_o zero.
    """

    heads: Size = 4
    """Number of heads; the state of each is a matrix [k, v]. Released models have heads of width 64."""
    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    first_value: bool = True
    """Adds f_v, the value residual. If False, v~ = v. It has no effect on a layer that is used alone."""
    decay_rank: Size = 32
    """Inner width of f_w."""
    rate_rank: Size = 32
    """Inner width of f_a."""
    value_rank: Size = 32
    """Inner width of f_v."""
    gate_rank: Size = 64
    """Inner width of A B in g."""
    eps: Positive = 64e-5
    """Epsilon that the norm over each head adds to the variance; released models have 1e-5 times 64."""
    key_eps: Positive = 1e-12
    """Epsilon added to the squared length that normalises u_t; flash-linear-attention adds 1e-6."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_attention`; None: the fastest for platform and shape."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        d_model, heads = self.d_model, self.heads
        keys, values = widths(d_model, heads, self.expand_k, self.expand_v)
        self.key_dim, self.value_dim = keys // heads, values // heads
        index, count = (0, 1) if depth is None else depth
        kwargs = self.factory_kwargs(rngs)
        zero, orthogonal, faint = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal(), jax.nn.initializers.orthogonal(0.1)
        self.receptance, self.key = (Linear(d_model, keys, init=init, **kwargs) for init in (orthogonal, faint))
        self.value = Linear(d_model, values, init=orthogonal, **kwargs)
        self.out = Linear(values, d_model, axes=("heads", "embed"), init=zero, **kwargs)

        rise = jnp.asarray(index, jnp.float32) / max(count - 1, 1)  # from 0 to 1 through the layers
        line, zigzag = (jnp.asarray(x, jnp.float32) for x in _along(keys, keys // heads))
        low_rank = {"down_init": zero, "up_init": faint, **kwargs}
        decay = -5.5 + 6 * (line + 0.5) ** (1 + rise**0.3) + 2.5 * zigzag
        self.decay = LowRank(d_model, self.decay_rank, keys, activation=jnp.tanh, bias=decay, **low_rank)
        self.rate = LowRank(d_model, self.rate_rank, keys, bias=-0.19 + 0.3 * zigzag + 0.4 * line, **low_rank)
        blend = {"bias": 0.73 - 0.4 * _along(values, values)[0], **low_rank}
        self.first = LowRank(d_model, self.value_rank, values, **blend) if self.first_value else None
        self.gate = LowRank(d_model, self.gate_rank, values, activation=jax.nn.sigmoid, **low_rank)

        param = lambda x, *axes: nnx.Param(jnp.asarray(x, self.param_dtype), axes=axes, decay=False)
        self.mix = param(1 - jnp.stack([mixes(d_model, depth, power) for power in MIXES.values()]), None, "embed")
        self.removal, self.replacement = param(0.71 - 0.1 * line, "heads"), param(jnp.full((keys,), 1.02), "heads")
        self.bonus = param(jnp.full((heads, keys // heads), -0.04), "heads", None)
        self.norm = LayerNorm(values, eps=self.eps, axis="heads", groups=heads, param_dtype=self.param_dtype)
        self.norm.scale[...] = jnp.full((values,), ((index + 1) / count) ** 0.7, self.param_dtype)

    def with_layer_inputs(self, x, layer_inputs, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        back = previous.astype(x.dtype) - x
        x_r, x_w, x_k, x_v, x_a, x_g = (x + back * mu[None, None] for mu in self.mix[...].astype(x.dtype))
        r, k, v, a = self.receptance(x_r), self.key(x_k), self.value(x_v), jax.nn.sigmoid(self.rate(x_a))
        if self.first is not None:
            first = layer_inputs[self.layer_input]
            first = FirstValue(jnp.where(first.known, first.value, v), jnp.ones_like(first.known))
            layer_inputs = layer_inputs | {self.layer_input: first}
            v = (v + (first.value - v) * jax.nn.sigmoid(self.first(x_v))).astype(v.dtype)

        per_channel = lambda p: p[...].astype(a.dtype)[None, None]
        heads = lambda y: rearrange(y, "b t (h n) -> b t h n", h=self.heads)
        removed = l2_normalise(heads(k * per_channel(self.removal)), self.key_eps)
        k = (k * (1 + (a - 1) * per_channel(self.replacement))).astype(v.dtype)
        r, k, v = heads(r), heads(k), heads(v)
        o, matrix = linear_attention(
            r,
            k,
            v,
            log_decay=heads(-FASTEST * jax.nn.sigmoid(self.decay(x_w))),
            a=-removed.astype(k.dtype),
            b=(heads(a) * removed).astype(k.dtype),
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        own = jnp.sum(r * self.bonus[...].astype(r.dtype)[None, None] * k, axis=-1, keepdims=True) * v
        merge = lambda y: rearrange(y, "b t h v -> b t (h v)")
        y = self.gate(x_g) * (self.norm(merge(o)) + merge(own))
        return self.out(y), next_state(state, segment_ids, tail=tail, matrix=matrix), layer_inputs

    def __call__(self, x, **arguments):
        return self.with_layer_inputs(x, self.init_layer_inputs(x), **arguments)[:2]

    @property
    def layer_input(self) -> str:
        """Name of the first layer's values among the layer inputs; layers with as many values share it."""
        return f"first of {self.heads * self.value_dim} values"

    def init_layer_inputs(self, x):
        if self.first is None:
            return {}
        dtype = self.value.dtype or jnp.result_type(x, self.value.w[...])
        value = jnp.zeros((*x.shape[:2], self.heads * self.value_dim), dtype)
        return {self.layer_input: FirstValue(value, jnp.zeros((), bool))}

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RWKV7State:
        """An empty state; `max_length` has no influence on its size."""
        dtype = self.cache_dtype(dtype)
        tail = jnp.zeros((batch, 1, self.d_model), dtype)
        return RWKV7State(tail, *empty_state(batch, self.heads, self.key_dim, self.value_dim, dtype))

    def flops(self, batch, length):
        k, v = self.key_dim, self.value_dim
        low_rank = sum(f.flops_per_token for f in (self.decay, self.rate, self.first, self.gate) if f is not None)
        return batch * length * (low_rank + self.heads * (2 * self.d_model * (2 * k + 2 * v) + 8 * k * v))


def _along(width: int, head: int) -> tuple[Array, Array]:
    """Over all channels a line from -1/2 to 1/2, and within each head s |s| for s from -1 to 1."""
    s = (jnp.arange(width) % head - (head - 1) / 2) / max((head - 1) / 2, 0.5)
    return jnp.arange(width) / max(width - 1, 1) - 0.5, s * jnp.abs(s)
