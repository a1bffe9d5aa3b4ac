"""RWKV-6's time mixing: a matrix memory with a data-dependent decay per channel, read before it is written."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.gated_memory import empty_memory, widths
from seqzoo.nn import LayerNorm, Linear, LowRank, TokenBlend, mixes, small, token_shift


class RWKV6State(NamedTuple):
    """The last real token, and what has been written so far, decayed."""

    tail: Array  # [b, 1, d_model]
    memory: Array  # [b, h, k, v]
    segment: Array  # [b] int32


@register("rwkv6")
class RWKV6(Mixer):
    r"""Time mixing of RWKV-6, Finch (Peng et al. 2024, arXiv:2404.05892).

        S_t = Diag(w_t) S_{t-1} + k_t v_t^T        w_t = exp(-exp(w_0 + tanh(x^w_t A) B))
        y_t = W_o [silu(W_g x^g_t) * groupnorm((S_{t-1} + Diag(u) k_t v_t^T)^T r_t)]        r, k, v = W x^r, W x^k, W x^v
        x^i_t = x_t + (x_{t-1} - x_t) * (mu_i + tanh((x_t + (x_{t-1} - x_t) * mu_x) A') B'_i)        for i in w, k, v, r, g

    Use it where GLA would be used and neighbouring tokens matter: each projection sees its own blend of a token and the one before.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads]. Released models: width 64.
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      mix_rank, decay_rank: inner widths of the low-rank maps A' B' (each of five) and A B.
      eps: of the norm over each head; released models have 1e-5 times 8^2.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
      depth: (index, count) of the layer, which sets decays, mixes and the norm's scale at the start; None is (0, 1). The index may
        be traced.
    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and one input per row, independent of t.
    Scores are not scaled. Initial values are those of the authors' code (RWKV-LM, "x060"): W_r and W_v orthogonal, W_k and W_g that
    times 0.1, W_o zero, A and A' zero, B and B' uniform within 0.01.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=1.0,
        mix_rank=32,
        decay_rank=64,
        eps=64e-5,
        implementation=None,
        depth=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        keys, values = widths(d_model, heads, expand_k, expand_v)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        zero, orthogonal, faint = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal(), jax.nn.initializers.orthogonal(0.1)
        self.receptance, self.key = (Linear(d_model, keys, init=init, **settings) for init in (orthogonal, faint))
        self.value, self.gate = (Linear(d_model, values, init=init, **settings) for init in (orthogonal, faint))

        index, count = (0, 1) if depth is None else depth
        rise = jnp.asarray(index, jnp.float32) / max(count - 1, 1)  # from 0 to 1 through the layers
        channel = jnp.arange(keys, dtype=jnp.float32) / max(keys - 1, 1)
        bonus = rise * (1 - channel) + 0.1 * ((jnp.arange(keys) + 1) % 3 - 1)
        decay = {"bias": -6 + 5 * channel ** (0.7 + 1.3 * rise), "activation": jnp.tanh, "down_init": zero, "up_init": small}
        self.decay = LowRank(d_model, decay_rank, keys, **decay, **settings)
        self.bonus = nnx.Param(bonus.astype(param_dtype).reshape(heads, -1), axes=("heads", None), decay=False)
        slow, fast = mixes(d_model, depth), mixes(d_model, depth, 0.5)
        starts = 1 - jnp.stack([slow, slow, slow + 0.3 * rise, fast, fast])  # decay, key, value, receptance, gate
        self.blend = TokenBlend(1 - slow, starts, mix_rank, **settings)
        self.norm = LayerNorm(values, eps=eps, axis="heads", groups=heads, param_dtype=param_dtype)
        self.norm.scale[...] = jnp.full((values,), ((index + 1) / count) ** 0.7, param_dtype)
        self.out = Linear(values, d_model, axes=("heads", "embed"), init=zero, **settings)
        self.sizes = (d_model, heads, keys // heads, values // heads)
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        x_w, x_k, x_v, x_r, x_g = self.blend(x, previous)
        heads = lambda y: y.reshape(*y.shape[:2], self.sizes[1], -1)
        o, memory = linear_attention(
            heads(self.receptance(x_r)),
            heads(self.key(x_k)),
            heads(self.value(x_v)),
            log_decay=heads(-jnp.exp(self.decay(x_w))),
            exclusive=True,
            bonus=self.bonus[...],
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        y = jax.nn.silu(self.gate(x_g)) * self.norm(o.reshape(*x.shape[:2], -1))
        return self.out(y), next_state(state, segment_ids, tail=tail, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> RWKV6State:
        """An empty memory; `max_length` has no bearing on its size."""
        dtype = self.dtype if dtype is None else dtype
        return RWKV6State(jnp.zeros((batch, 1, self.sizes[0]), dtype), *empty_memory(batch, *self.sizes[1:], dtype))

    def flops(self, batch, length) -> int:
        d_model, heads, k, v = self.sizes
        low_rank = self.decay.flops_per_token + self.blend.flops_per_token
        return batch * length * (low_rank + heads * (2 * d_model * (2 * k + 3 * v) + 4 * k * v))
