"""RWKV-6's time mixing: linear attention with a data-dependent decay per channel, whose state is queried before it is written."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import Implementation, empty_state, widths
from seqzoo.mixers.shapes import square_heads
from seqzoo.nn import LayerNorm, Linear, LowRank, TokenBlend, mixes, small, token_shift
from seqzoo.specs import Expansion, Positive, Size


class RWKV6State(NamedTuple):
    """Recurrent state, and the last real token."""

    tail: Array  # [b, 1, d_model]
    matrix: Array  # [b, h, k, v]
    segment: Array  # [b] int32


@register("rwkv6")
class RWKV6(Mixer):
    r"""Time mixing of RWKV-6, Finch (Peng et al. 2024, arXiv:2404.05892).

        S_t = Diag(w_t) S_{t-1} + k_t v_t^T        w_t = exp(-exp(w_0 + tanh(x^w_t A) B))
        y_t = W_o [silu(W_g x^g_t) * groupnorm((S_{t-1} + Diag(u) k_t v_t^T)^T r_t)]        r, k, v = W x^r, W x^k, W x^v
        x^i_t = x_t + (x_{t-1} - x_t) * (mu_i + tanh((x_t + (x_{t-1} - x_t) * mu_x) A') B'_i)        for i in w, k, v, r, g

    Use it where GLA would be used and neighbouring tokens matter: each projection sees its own blend of a token and the one before.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and one input per row, independent of t.
    Scores are not scaled. Initial values are those of the authors' code (RWKV-LM, "x060"): W_r and W_v orthogonal, W_k and W_g
    orthogonal times 0.1, W_o zero, A and A' zero, B and B' uniform within 0.01.
    """

    heads: Size = 4
    """Number of heads; the state of each is a matrix [k, v]. Released models have heads of width 64."""
    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    mix_rank: Size = 32
    """Inner width of each of the five low-rank maps A' B'."""
    decay_rank: Size = 64
    """Inner width of the low-rank map A B."""
    eps: Positive = 64e-5
    """Epsilon that the norm over each head adds to the variance; released models have 1e-5 times 8^2."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_attention`; None: the fastest for platform and shape."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        d_model, heads = self.d_model, self.heads
        keys, values = widths(d_model, heads, self.expand_k, self.expand_v)
        self.key_dim, self.value_dim = keys // heads, values // heads
        kwargs = self.factory_kwargs(rngs)
        zero, orthogonal, faint = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal(), jax.nn.initializers.orthogonal(0.1)
        self.receptance, self.key = (Linear(d_model, keys, init=init, **kwargs) for init in (orthogonal, faint))
        self.value, self.gate = (Linear(d_model, values, init=init, **kwargs) for init in (orthogonal, faint))

        index, count = (0, 1) if depth is None else depth
        rise = jnp.asarray(index, jnp.float32) / max(count - 1, 1)  # from 0 to 1 through the layers
        channel = jnp.arange(keys, dtype=jnp.float32) / max(keys - 1, 1)
        bonus = rise * (1 - channel) + 0.1 * ((jnp.arange(keys) + 1) % 3 - 1)
        decay = {"bias": -6 + 5 * channel ** (0.7 + 1.3 * rise), "activation": jnp.tanh, "down_init": zero, "up_init": small}
        self.decay = LowRank(d_model, self.decay_rank, keys, **decay, **kwargs)
        self.bonus = nnx.Param(bonus.astype(self.param_dtype).reshape(heads, -1), axes=("heads", None), decay=False)
        slow, fast = mixes(d_model, depth), mixes(d_model, depth, 0.5)
        starts = 1 - jnp.stack([slow, slow, slow + 0.3 * rise, fast, fast])  # decay, key, value, receptance, gate
        self.blend = TokenBlend(1 - slow, starts, self.mix_rank, **kwargs)
        self.norm = LayerNorm(values, eps=self.eps, axis="heads", groups=heads, param_dtype=self.param_dtype)
        self.norm.scale[...] = jnp.full((values,), ((index + 1) / count) ** 0.7, self.param_dtype)
        self.out = Linear(values, d_model, axes=("heads", "embed"), init=zero, **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        x_w, x_k, x_v, x_r, x_g = self.blend(x, previous)
        heads = lambda y: rearrange(y, "b t (h n) -> b t h n", h=self.heads)
        o, matrix = linear_attention(
            heads(self.receptance(x_r)),
            heads(self.key(x_k)),
            heads(self.value(x_v)),
            log_decay=heads(-jnp.exp(self.decay(x_w))),
            read_before_write=True,
            bonus=self.bonus[...],
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        y = jax.nn.silu(self.gate(x_g)) * self.norm(rearrange(o, "b t h v -> b t (h v)"))
        return self.out(y), next_state(state, segment_ids, tail=tail, matrix=matrix)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RWKV6State:
        """An empty state; `max_length` has no influence on its size."""
        dtype = self.cache_dtype(dtype)
        tail = jnp.zeros((batch, 1, self.d_model), dtype)
        return RWKV6State(tail, *empty_state(batch, self.heads, self.key_dim, self.value_dim, dtype))

    def flops(self, batch, length):
        k, v, low_rank = self.key_dim, self.value_dim, self.decay.flops_per_token + self.blend.flops_per_token
        return batch * length * (low_rank + self.heads * (2 * self.d_model * (2 * k + 3 * v) + 4 * k * v))
