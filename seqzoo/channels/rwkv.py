"""RWKV's channel mixing: a squared ReLU network, behind a gate or not, both of which see the token before as well."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.channels.base import register
from seqzoo.kernels.common import segments
from seqzoo.nn import Linear, lerp, mixes, token_shift


class RWKVChannelState(NamedTuple):
    """The last real token."""

    tail: Array  # [b, 1, d_model]
    segment: Array  # [b] int32


@register("rwkv")
class RWKVChannelMix(nnx.Module):
    """y_t = sigmoid(W_r x^r_t) * W_v relu(W_k x^k_t)^2 with x^i_t = mu_i * x_t + (1 - mu_i) * x_{t-1} (Peng et al. 2023,
    arXiv:2305.13048): that of RWKV-4 and -5. RWKV-6 has the same, and stores 1 - mu; RWKV-7 has no gate.

    It is a mixer of two tokens, carries the last one, and obeys the mixers' law.

    Args:
      d_model: width of x and y.
      expansion: hidden width over d_model, rounded.
      gated: whether the sigmoid is there; else y_t = W_v relu(W_k x^k_t)^2 (Peng et al. 2025, arXiv:2503.14456).
      depth: (index, count) of the layer, which sets the mixes at the start; None is (0, 1). The index may be traced.
    Cost: time O(t d^2 expansion); state d numbers per row.
    Initial values are those of the authors' RWKV-v4neo: W_r and W_v zero, W_k orthogonal, mixes by channel and layer.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expansion: float = 4,
        gated: bool = True,
        depth: tuple[Any, int] | None = None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = round(d_model * expansion)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        zero, orthogonal = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal(max(1, hidden / d_model) ** 0.5)
        self.key = Linear(d_model, hidden, axes=("embed", "mlp"), init=orthogonal, **settings)
        self.value = Linear(hidden, d_model, axes=("mlp", "embed"), init=zero, **settings)
        self.receptance = Linear(d_model, d_model, axes=("embed", None), init=zero, **settings) if gated else None
        mix = lambda: nnx.Param(mixes(d_model, depth).astype(param_dtype), axes=("embed",))
        self.mix_key, self.mix_receptance = mix(), mix() if gated else None
        self.size, self.dtype = (d_model, hidden), param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        """[b, t, d_model] -> ([b, t, d_model], state)."""
        tail, segment = (None, None) if state is None else state
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        y = self.value(jnp.square(jax.nn.relu(self.key(lerp(x, previous, self.mix_key[...])))))
        if self.receptance is not None:
            y = jax.nn.sigmoid(self.receptance(lerp(x, previous, self.mix_receptance[...]))) * y
        return y, None if state is None else RWKVChannelState(tail, segments.last_segment(segment_ids, segment))

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RWKVChannelState:
        """Nothing before the first token; `max_length` has no bearing on its size."""
        tail = jnp.zeros((batch, 1, self.size[0]), self.dtype if dtype is None else dtype)
        return RWKVChannelState(tail, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch: int, length: int) -> int:
        """Two matrix products per token, and a square one for the gate."""
        d_model, hidden = self.size
        return 2 * batch * length * d_model * (2 * hidden + (0 if self.receptance is None else d_model))
