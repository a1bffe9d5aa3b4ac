"""RWKV-4's time mixing: attention whose weights are exponentials of keys alone, decayed by channel, which is a recurrence."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.nn import Linear, exponential_gates, lerp, mixes, scaled, subtract_maximum, token_shift

Implementation = Literal["reference", "recurrent", "chunkwise"]


class RWKV4State(NamedTuple):
    """The last real token, and the sums of weighted values and of weights, both divided by exp(maximum)."""

    tail: Array  # [b, 1, d_model]
    sums: Array  # [b, d_model, 2]
    maximum: Array  # [b, d_model] logarithm of the largest weight so far, -inf before the first token
    segment: Array  # [b] int32


@register("rwkv4")
class RWKV4(Mixer):
    r"""Time mixing of RWKV-4 (Peng et al. 2023, arXiv:2305.13048).

        r_t, k_t, v_t = W_r x^r_t, W_k x^k_t, W_v x^v_t        x^i_t = mu_i * x_t + (1 - mu_i) * x_{t-1}
        wkv_t = (sum_{s < t} e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (sum_{s < t} e^{(t-1-s) w + k_s} + e^{u + k_t})
        y_t = W_o [sigmoid(r_t) * wkv_t]        w = -exp(time_decay)

    per channel: an average of values, in which the present one has a bonus u. Use it as the baseline of recurrences that attend, in
    a stack with the channel mixer `rwkv`. The weights of past tokens do not depend on the token that reads them.

    Cost: time O(t d^2), all of it projections; state 16 d bytes per row, independent of t.
    Both sums are recurrences, stored divided by exp(m_t), m_t = max(m_{t-1} + w, k_t), so that keys of any size stay in range;
    wkv_t uses the sums before t, divided by the larger of exp(m_{t-1}) and exp(u + k_t).
    Initial values are those of the authors' RWKV-v4neo: W_k, W_r, W_o zero, W_v orthogonal, decays slower in lower channels and
    upper layers, mixes by channel and layer. The code of transformers for the released models has other initial values, with
    every u at 1.
    """

    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_recurrence`; None: the fastest for platform and shape."""

    def setup(self, rngs, depth):
        d_model, kwargs = self.d_model, self.factory_kwargs(rngs)
        zero, orthogonal = jax.nn.initializers.zeros, jax.nn.initializers.orthogonal()
        self.key, self.receptance = (Linear(d_model, d_model, init=zero, **kwargs) for _ in range(2))
        self.value = Linear(d_model, d_model, init=orthogonal, **kwargs)
        self.out = Linear(d_model, d_model, axes=("heads", "embed"), init=zero, **kwargs)

        index, count = (0, 1) if depth is None else depth
        rise = jnp.asarray(index, jnp.float32) / max(count - 1, 1)  # from 0 to 1 through the layers
        channel = jnp.arange(d_model, dtype=jnp.float32)
        decay = -5 + 8 * (channel / max(d_model - 1, 1)) ** (0.7 + 1.3 * rise)
        bonus = math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1)
        self.time_decay, self.time_first = (
            nnx.Param(p.astype(self.param_dtype), axes=("heads",), decay=False) for p in (decay, bonus)
        )
        starts = (mixes(d_model, depth), mixes(d_model, depth) + 0.3 * rise, mixes(d_model, depth, 0.5))
        self.mix_key, self.mix_value, self.mix_receptance = (nnx.Param(p.astype(self.param_dtype), axes=("embed",)) for p in starts)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        tail, first, segment = (None, None, None) if state is None else (state.tail, state.maximum, state.segment)
        initial = None if state is None else state._replace(sums=scaled(state.sums, state.maximum[..., None]))
        previous, tail = token_shift(x, tail=tail, segment=segment, segment_ids=segment_ids)
        r = self.receptance(lerp(x, previous, self.mix_receptance[...]))
        k, v = self.key(lerp(x, previous, self.mix_key[...])), self.value(lerp(x, previous, self.mix_value[...]))
        k, v = (z.astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (k, v))

        w, bonus = (jnp.broadcast_to(p[...].astype(k.dtype)[None, None], k.shape) for p in (self.time_decay, self.time_first))
        gates = exponential_gates(k, -jnp.exp(w), maximum=first, segment=segment, segment_ids=segment_ids)
        inputs = jnp.stack([v, jnp.ones_like(v)], axis=-1)
        h, sums = linear_recurrence(
            jnp.broadcast_to(jnp.exp(gates.log_decay)[..., None], inputs.shape),
            jnp.exp(gates.log_weight)[..., None] * inputs,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(initial, "sums"),
        )
        past, _ = token_shift(
            h.reshape(*h.shape[:2], -1),
            tail=None if initial is None else initial.sums.reshape(h.shape[0], 1, -1),
            segment=segment,
            segment_ids=segment_ids,
        )
        past_weight, present_weight = (jnp.exp(z)[..., None] for z in subtract_maximum(gates.before, bonus + k))
        read = past_weight * past.reshape(h.shape) + present_weight * inputs
        y = self.out(jax.nn.sigmoid(r) * (read[..., 0] / read[..., 1]).astype(r.dtype))
        maximum = gates.maximum[:, -1]
        return y, next_state(state, segment_ids, tail=tail, sums=scaled(sums, -maximum[..., None]), maximum=maximum)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> RWKV4State:
        """Empty sums, with the maximum at -inf; `max_length` has no influence on their size."""
        dtype = self.cache_dtype(dtype)
        wide = jnp.promote_types(jnp.float32, dtype)
        tail, sums = jnp.zeros((batch, 1, self.d_model), dtype), jnp.zeros((batch, self.d_model, 2), wide)
        maximum = jnp.full((batch, self.d_model), -jnp.inf, wide)
        return RWKV4State(tail, sums, maximum, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        return 8 * batch * length * self.d_model**2
