"""Base of attention mixers: projections, grouped-query attention (GQA, MQA), rotary positions, a KV cache, an output gate."""

from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from seqzoo.kernels.attention import Cache, attention, empty_cache
from seqzoo.kernels.common import segments
from seqzoo.mixers.base import Mixer, next_state
from seqzoo.mixers.shapes import WORK, Shape
from seqzoo.nn import LayerNorm, Linear, RMSNorm, check_rotary, rotate
from seqzoo.specs import Length, Positive, Rate, Size

Norm = Literal["rms", "layer"]
NORMS = {"rms": RMSNorm, "layer": LayerNorm}

Implementation = Literal["reference", "decode", "blockwise"]
"""Name of an implementation of `seqzoo.kernels.attention`."""


class AttentionState(NamedTuple):
    """KV cache of the current document."""

    cache: Cache  # keys, values [b, slots, kv heads, head_dim], length [b] int32
    segment: Array  # [b] int32, the document it belongs to


class AttentionMixer(Mixer):
    """o_i = sum_{j <= i} weight(scale q_i . k_j) v_j,  y = W_o [o of all heads]; subclasses choose the weights."""

    heads: Size = 4
    """Number of query heads."""
    kv_heads: Size | None = None
    """Number of key and value heads, a divisor of heads: grouped-query attention (GQA, Ainslie et al. 2023, arXiv:2305.13245),
    with 1 multi-query attention (MQA); None: as many as heads."""
    value_heads: Size | None = None
    """Number of value heads, another divisor of heads; None: as many as key heads. DiffQKV (Lin et al. 2025, arXiv:2501.13629) has
    more of them."""
    head_dim: Size | None = None
    """Width of a head; None: d_model / heads."""
    value_dim: Size | None = None
    """Width of a value; None: head_dim, the width of queries and keys."""
    scale: Positive | None = None
    """Factor on the dot products of queries and keys; None: 1 / sqrt(head_dim)."""
    window: Length | None = None
    """Sliding window: number of tokens that a token sees, itself included; None: its whole document."""
    rope_theta: Positive | None = 10000.0
    """Base of the rotary positions, RoPE (Su et al. 2021, arXiv:2104.09864); None: no positions."""
    rope_dim: Size | None = None
    """Number of channels of a head that are rotated, the first ones; an even number; None: all."""
    qk_norm: Norm | None = None
    """Norm of the queries and keys of each head (Dehghani et al. 2023, arXiv:2302.05442)."""
    joint_qk_norm: bool = False
    """Normalises all heads together, with a scale per channel, as in OLMo 2 (OLMo team 2025, arXiv:2501.00656)."""
    qk_norm_eps: Positive = 1e-6
    """Epsilon that those norms add to the mean square."""
    output_gate: bool = False
    """Multiplies o by sigmoid(W_g x) before W_o, as in Qwen3-Next (Qiu et al. 2025, arXiv:2505.06708)."""
    bias: bool = False
    """Adds biases to the projections."""
    out_bias: bool | None = None
    """Adds a bias to the output projection W_o; None: as `bias`."""
    dropout: Rate = 0.0
    """Dropout rate of the attention weights; active if a PRNG key is given."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.attention`; None: the fastest for platform and shape."""

    scores: ClassVar[Literal["softmax", "sigmoid"]]
    shapes = tuple(Shape({"heads": heads}, {"head_dim": 2}, WORK) for heads in (1, 2, 4, 8))  # rotary: an even head_dim

    def setup(self, rngs, depth):
        self.key_heads, self.key_dim = self.head_sizes()
        self.v_heads = self.key_heads if self.value_heads is None else self.value_heads
        if self.heads % self.v_heads:
            raise ValueError(f"value_heads={self.v_heads} does not divide heads={self.heads}: set value_heads to a divisor")
        self.v_dim = self.key_dim if self.value_dim is None else self.value_dim
        kwargs = self.factory_kwargs(rngs)
        make = lambda heads, width: Linear(self.d_model, heads * width, bias=self.bias, **kwargs)
        self.q, self.k = make(self.heads, self.key_dim), make(self.key_heads, self.key_dim)
        self.v = make(self.v_heads, self.v_dim)
        out_bias = self.bias if self.out_bias is None else self.out_bias
        self.out = Linear(self.heads * self.v_dim, self.d_model, axes=("heads", "embed"), bias=out_bias, **kwargs)
        self.q_norm, self.k_norm = self.make_norm(self.heads), self.make_norm(self.key_heads)
        self.gate = make(self.heads, self.v_dim) if self.output_gate else None

    def head_sizes(self) -> tuple[int, int]:
        """(number of key and value heads, width of a head); ValueError where settings do not fit each other."""
        heads, kv_heads = self.heads, self.heads if self.kv_heads is None else self.kv_heads
        if heads % kv_heads:
            raise ValueError(f"kv_heads={kv_heads} does not divide heads={heads}: set kv_heads to a divisor")
        if self.head_dim is None and self.d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_model={self.d_model}: set heads to a divisor, or head_dim")
        width = self.d_model // heads if self.head_dim is None else self.head_dim
        if self.rope_dim is None:
            check_rotary(width, self.rope_theta, "heads or head_dim")
        else:
            check_rotary(self.rope_dim, self.rope_theta, "rope_dim")
            if self.rope_theta is None or self.rope_dim > width:
                raise ValueError(f"rope_dim={self.rope_dim}: wanted None, or with a rope_theta 2 to {width}, the width of a head")
        if self.joint_qk_norm and self.qk_norm is None:
            raise ValueError("joint_qk_norm=True needs a norm: set qk_norm to 'rms' or 'layer'")
        return kv_heads, width

    def make_norm(self, heads: int) -> RMSNorm | LayerNorm | None:
        """The norm of queries or keys, as wide as a head, or as all of them."""
        if self.qk_norm is None:
            return None
        norm = partial(NORMS[self.qk_norm], eps=self.qk_norm_eps, param_dtype=self.param_dtype)
        return norm(heads * self.key_dim, axis="heads") if self.joint_qk_norm else norm(self.key_dim, axis=None)

    def score_bias(self) -> float:
        """Number added to all scores."""
        return 0.0

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        batch, length, _ = x.shape
        q, k = self.split_heads(self.q(x), self.q_norm), self.split_heads(self.k(x), self.k_norm)
        v = rearrange(self.v(x), "b t (h v) -> b t h v", v=self.v_dim)
        if self.rope_theta is not None:
            positions = self.positions(batch, length, state, segment_ids) if positions is None else positions
            q, k = (rotate(x, positions, self.rope_theta, self.rope_dim) for x in (q, k))
        o, cache = attention(
            q,
            k,
            v,
            scores=self.scores,
            bias=self.score_bias(),
            scale=self.scale,
            window=self.window,
            dropout=self.dropout,
            key=key,
            initial_state=None if state is None else state.cache,
            initial_segment=None if state is None else state.segment,
            segment_ids=segment_ids,
            implementation=self.implementation,
        )
        o = rearrange(o, "b t h v -> b t (h v)")
        y = self.out(o if self.gate is None else jax.nn.sigmoid(self.gate(x)) * o)
        return y, next_state(state, segment_ids, cache=cache)

    def split_heads(self, x: Array, norm: RMSNorm | LayerNorm | None = None) -> Array:
        """[b, t, h k] -> [b, t, h, k], normalised."""
        if norm is not None:
            x = norm(x if self.joint_qk_norm else x.reshape(*x.shape[:2], -1, self.key_dim))
        return x.reshape(*x.shape[:2], -1, self.key_dim)

    @staticmethod
    def positions(batch: int, length: int, state: AttentionState | None, segment_ids: Array | None) -> Array:
        """Indices [b, t] inside each document, which continue those of the cache."""
        if state is None:
            return segments.positions(segment_ids, None, jnp.zeros((batch,), jnp.int32), length)[0]
        return segments.positions(segment_ids, state.segment, state.cache.length, length)[0]

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> AttentionState:
        """An empty KV cache: of `window` slots, or without a window of `max_length`, the longest document it can hold."""
        slots = self.window if self.window is not None else max_length
        if slots is None:
            raise ValueError(
                "max_length=None: attention without a window keeps every token of a document; give max_length, or set window"
            )
        cache = empty_cache(batch, slots, (self.key_heads, self.v_heads), self.key_dim, self.v_dim, self.cache_dtype(dtype))
        return AttentionState(cache, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch: int, length: int) -> int:
        window = min(length, length if self.window is None else self.window)
        pairs = window * (window + 1) // 2 + (length - window) * window
        keys = (self.heads + self.key_heads) * self.key_dim
        values = ((1 if self.gate is None else 2) * self.heads + self.v_heads) * self.v_dim
        return batch * (2 * length * self.d_model * (keys + values) + 2 * pairs * self.heads * (self.key_dim + self.v_dim))
