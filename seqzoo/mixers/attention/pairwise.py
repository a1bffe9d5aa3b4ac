"""What softmax and sigmoid attention have in common: projections, rotary positions, a cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.attention import Cache, attention, empty_cache
from seqzoo.kernels.common import segments
from seqzoo.mixers.base import Mixer, next_state
from seqzoo.nn import LayerNorm, Linear, RMSNorm, check_rotary, rotate


class AttentionState(NamedTuple):
    """The keys and values of the current document, and which document that is."""

    cache: Cache  # keys, values [b, slots, kv heads, width], length [b] int32
    segment: Array  # [b] int32


class PairwiseAttention(Mixer):
    """Causal attention with grouped heads, rotary positions, a window, QK-norm, dropout and an output gate.

    Subclasses choose the score function.
    """

    def __init__(
        self,
        d_model,
        *,
        heads,
        kv_heads,
        head_dim,
        window,
        rope_theta,
        qk_norm,
        bias,
        dropout,
        implementation,
        dtype,
        param_dtype,
        rngs,
        rope_dim=None,
        out_bias=None,
        joint_qk_norm=False,
        qk_norm_eps=1e-6,
        output_gate=False,
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} does not divide heads={heads}: set kv_heads to a divisor")
        if head_dim is None and d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor, or head_dim")
        width = d_model // heads if head_dim is None else head_dim
        check_rotary(width if rope_dim is None else rope_dim, rope_theta, "head_dim" if rope_dim is None else "rope_dim")
        if rope_dim is not None and (rope_theta is None or not 2 <= rope_dim <= width):
            raise ValueError(f"rope_dim={rope_dim}: wanted None, or with a rope_theta 2 to {width}, the width of a head")
        if window is not None and window < 1:
            raise ValueError(f"window={window}: wanted None or at least 1 token")
        make = lambda heads: Linear(d_model, heads * width, bias=bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.q, self.k, self.v = make(heads), make(kv_heads), make(kv_heads)
        out_bias, axes = bias if out_bias is None else out_bias, ("heads", "embed")
        self.out = Linear(heads * width, d_model, axes=axes, bias=out_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        norms = {"rms": RMSNorm, "layer": LayerNorm}
        if qk_norm not in (None, *norms):
            raise ValueError(f"qk_norm={qk_norm!r} is unknown; it is None, 'rms' or 'layer'")
        if joint_qk_norm and qk_norm is None:
            raise ValueError("joint_qk_norm=True needs a norm: set qk_norm to 'rms' or 'layer'")
        normed = (heads * width, kv_heads * width) if joint_qk_norm else (width, width)
        axis = "heads" if joint_qk_norm else None
        make_norm = lambda width: norms[qk_norm](width, eps=qk_norm_eps, axis=axis, param_dtype=param_dtype)
        self.q_norm, self.k_norm = (None, None) if qk_norm is None else map(make_norm, normed)
        self.r = make(heads) if output_gate else None
        self.sizes = (d_model, heads, kv_heads, width)
        self.window, self.rope_theta, self.rope_dim, self.dropout = window, rope_theta, rope_dim, dropout
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def score_settings(self) -> dict[str, Any]:
        """The keyword arguments of the op that make the score function."""
        raise NotImplementedError

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        batch, length, _ = x.shape
        q, k, v = self.split(self.q(x), self.q_norm), self.split(self.k(x), self.k_norm), self.split(self.v(x))
        if self.rope_theta is not None:
            positions = self.positions(batch, length, state, segment_ids) if positions is None else positions
            q, k = (rotate(x, positions, self.rope_theta, self.rope_dim) for x in (q, k))
        carried = {} if state is None else {"initial_state": state.cache, "initial_segment": state.segment}
        o, cache = attention(
            q,
            k,
            v,
            window=self.window,
            dropout=self.dropout,
            key=key,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **self.score_settings(),
            **carried,
        )
        o = o.reshape(batch, length, -1)
        return self.out(o if self.r is None else jax.nn.sigmoid(self.r(x)) * o), next_state(state, segment_ids, cache=cache)

    def split(self, x: Array, norm: nnx.Module | None = None) -> Array:
        """[b, t, heads width] -> [b, t, heads, width], behind a norm as wide as a head, as all of them, or none."""
        if norm is not None:
            x = norm(x.reshape(*x.shape[:2], -1, norm.scale[...].shape[0]))
        return x.reshape(*x.shape[:2], -1, self.sizes[3])

    @staticmethod
    def positions(batch, length, state, segment_ids) -> Array:
        """Indices inside each document, counted on from the cache."""
        count = jnp.zeros((batch,), jnp.int32) if state is None else state.cache.length
        return segments.positions(segment_ids, None if state is None else state.segment, count, length)[0]

    def init_state(self, batch, max_length=None, dtype=None) -> AttentionState:
        """An empty cache: of `window` slots, or without a window of `max_length`, the longest document it can hold."""
        slots = self.window if self.window is not None else max_length
        if slots is None:
            raise ValueError(
                "max_length=None: attention without a window keeps every token of a document; give max_length, or set window"
            )
        _, _, kv_heads, width = self.sizes
        cache = empty_cache(batch, slots, kv_heads, width, width, self.dtype if dtype is None else dtype)
        return AttentionState(cache, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, heads, kv_heads, width = self.sizes
        seen = min(length, length if self.window is None else self.window)
        pairs = seen * (seen + 1) // 2 + (length - seen) * seen
        projections = 2 * length * d_model * width * ((2 if self.r is None else 3) * heads + 2 * kv_heads)
        return batch * (projections + 4 * pairs * heads * width)
