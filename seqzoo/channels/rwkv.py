"""RWKV's channel mixing: a squared-ReLU network with or without a gate; both see the previous token as well."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.channels.base import ChannelMixer, register
from seqzoo.kernels.common import segments
from seqzoo.nn import Linear, lerp, mixes, token_shift
from seqzoo.specs import Expansion


class RWKVChannelState(NamedTuple):
    """The last real token."""

    tail: Array  # [b, 1, d_model]
    segment: Array  # [b] int32


@register("rwkv")
class RWKVChannelMix(ChannelMixer):
    """Channel mixing of RWKV-4 and -5, y_t = sigmoid(W_r x^r_t) * W_v relu(W_k x^k_t)^2 (Peng et al. 2023, arXiv:2305.13048).

        x^i_t = mu_i * x_t + (1 - mu_i) * x_{t-1}

    RWKV-6 has the same, and stores 1 - mu; RWKV-7 has no gate. It mixes two tokens and carries the last one, by the mixers' law.

    Cost: time O(t d^2 expansion); state d numbers per row.
    Initial values are those of the authors' RWKV-v4neo: W_r and W_v zero, W_k orthogonal, mu by channel and layer.
    """

    expansion: Expansion = 4.0
    """Hidden width as a multiple of d_model, rounded."""
    gated: bool = True
    """Multiplies by the sigmoid. If False, y_t = W_v relu(W_k x^k_t)^2 (RWKV-7, Peng et al. 2025, arXiv:2503.14456)."""

    def setup(self, rngs, depth):
        d_model = self.d_model
        self.hidden_size = hidden = round(d_model * self.expansion)
        kwargs = self.factory_kwargs(rngs)
        zero, orthogonal = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal(max(1, hidden / d_model) ** 0.5)
        self.key = Linear(d_model, hidden, axes=("embed", "mlp"), init=orthogonal, **kwargs)
        self.value = Linear(hidden, d_model, axes=("mlp", "embed"), init=zero, **kwargs)
        self.receptance = Linear(d_model, d_model, axes=("embed", None), init=zero, **kwargs) if self.gated else None
        mix = lambda: nnx.Param(mixes(d_model, depth).astype(self.param_dtype), axes=("embed",))
        self.mix_key = mix()
        self.mix_receptance = mix() if self.gated else None

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, segment = (None, None) if state is None else state
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        y = self.value(jnp.square(jax.nn.relu(self.key(lerp(x, previous, self.mix_key[...])))))
        if self.receptance is not None and self.mix_receptance is not None:
            y = jax.nn.sigmoid(self.receptance(lerp(x, previous, self.mix_receptance[...]))) * y
        if state is None:
            return y, None
        return y, RWKVChannelState(tail, segments.last_segment(segment_ids, state.segment))

    def init_state(self, batch, max_length=None, dtype=None):
        """No token before the first; `max_length` has no influence on its size."""
        tail = jnp.zeros((batch, 1, self.d_model), self.cache_dtype(dtype))
        return RWKVChannelState(tail, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        return 2 * batch * length * self.d_model * (2 * self.hidden_size + (self.d_model if self.gated else 0))
