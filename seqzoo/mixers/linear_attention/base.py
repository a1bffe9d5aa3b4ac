"""Base of linear-attention mixers: projections, a matrix-valued state per head, a norm and an output gate."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, State, next_state, state_kwargs
from seqzoo.nn import Linear, RMSNorm, torch_uniform
from seqzoo.specs import Size

XAVIER_SMALL = jax.nn.initializers.variance_scaling(2**-5, "fan_avg", "uniform")  # gain 2^-2.5: Sun et al.'s and Yang et al.'s code

Implementation = Literal["reference", "recurrent", "chunkwise", "recurrent_forward_chunkwise_backward"]
"""Name of an implementation of `seqzoo.kernels.linear_attention`."""


class LinearAttentionState(NamedTuple):
    """Recurrent state."""

    matrix: Array  # [b, h, k, v] float32 or wider
    segment: Array  # [b] int32, the document it belongs to


class MatrixStateMixer(Mixer):
    """Base of mixers whose heads call the linear-attention op."""

    heads: Size = 4
    """Number of heads; the state of each is a matrix [k, v]."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_attention`; None: the fastest for platform and shape."""

    def split_heads(self, x: Array) -> Array:
        """[b, t, h n] -> [b, t, h, n]."""
        return rearrange(x, "b t (h n) -> b t h n", h=self.heads)


class LinearAttentionMixer(MatrixStateMixer):
    """S_t = decay_t S_{t-1} + k_t v_t^T,  y_t = W_o [activation(W_g x_t) * norm(scale q_t^T S_t)]; subclasses choose the decay."""

    gate_activation: ClassVar[Callable[[Array], Array]] = staticmethod(jax.nn.swish)

    def make_layers(
        self,
        rngs: nnx.Rngs,
        expand_k: float,
        expand_v: float,
        *,
        scale: float | None = None,
        qk_init: Any = torch_uniform,
        v_init: Any = torch_uniform,
        gate_init: Any = torch_uniform,
        out_init: Any = torch_uniform,
        norm_eps: float = 1e-5,
        joint_norm: Callable[..., nnx.Module] | None = None,
    ) -> None:
        """Makes all layers; a subclass calls it in `setup`.

        Args:
          expand_k, expand_v: widths of all keys and of all values, over d_model.
          scale: factor on the queries; None: k^-0.5.
          qk_init, v_init, gate_init, out_init: initialisers of the projections.
          norm_eps: added to the mean square, per head, with one learned scale for all heads.
          joint_norm: makes a norm over the values of all heads instead.
        """
        keys, values = widths(self.d_model, self.heads, expand_k, expand_v)
        self.key_dim, self.value_dim, self.query_scale = keys // self.heads, values // self.heads, scale
        kwargs = self.factory_kwargs(rngs)
        self.q, self.k = (Linear(self.d_model, keys, init=qk_init, **kwargs) for _ in range(2))
        self.v, self.gate = (Linear(self.d_model, values, init=init, **kwargs) for init in (v_init, gate_init))
        self.make_decay(rngs)
        self.norm_width = self.value_dim if joint_norm is None else values
        if joint_norm is None:
            self.norm = RMSNorm(self.value_dim, eps=norm_eps, axis=None, param_dtype=self.param_dtype)
        else:
            self.norm = joint_norm(values, axis="heads", param_dtype=self.param_dtype)
        self.out = Linear(values, self.d_model, axes=("heads", "embed"), init=out_init, **kwargs)

    def make_decay(self, rngs: nnx.Rngs) -> None:
        """Makes the layers of the decay, if it has any."""

    def log_decay(self, x: Array) -> Array:
        """x [b, t, d_model] -> [h], [b, t, h] or [b, t, h, k], at most 0."""
        raise NotImplementedError

    def project_qkv(self, x: Array) -> tuple[Array, Array, Array]:
        """q, k [b, t, h, k] and v [b, t, h, v] of x."""
        return self.split_heads(self.q(x)), self.split_heads(self.k(x)), self.split_heads(self.v(x))

    def attend(
        self, q: Array, k: Array, v: Array, log_decay: Array, state: Any, segment_ids: Array | None, output_dtype: Any = None
    ) -> tuple[Array, Array]:
        """(o [b, t, h, v], in `output_dtype` or v's, and the state's matrix after the last token)."""
        return linear_attention(
            q,
            k,
            v,
            log_decay=log_decay,
            scale=self.query_scale,
            output_dtype=output_dtype,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )

    def output(self, x: Array, o: Array) -> Array:
        """y [b, t, d_model]: o [b, t, h, v] normalised, gated by x and projected."""
        o = self.norm(o if self.norm_width == self.value_dim else rearrange(o, "b t h v -> b t (h v)"))
        o = o.reshape(*x.shape[:2], -1)
        gate = self.gate_activation(self.gate(x))
        return self.out(gate * o.astype(gate.dtype))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        o, matrix = self.attend(*self.project_qkv(x), self.log_decay(x), state, segment_ids)
        return self.output(x, o), next_state(state, segment_ids, matrix=matrix)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> State:
        """An empty state; `max_length` has no influence on its size."""
        return empty_state(batch, self.heads, self.key_dim, self.value_dim, self.cache_dtype(dtype))

    def flops(self, batch: int, length: int) -> int:
        k, v = self.key_dim, self.value_dim
        return batch * length * self.heads * (2 * self.d_model * (2 * k + 3 * v) + 4 * k * v)


def head_dim(d_model: int, heads: int) -> int:
    """d_model / heads; ValueError unless heads divides d_model."""
    if d_model % heads:
        raise ValueError(f"heads={heads} does not divide d_model={d_model}: set heads to a divisor")
    return d_model // heads


def widths(d_model: int, heads: int, expand_k: float, expand_v: float, key_heads: int | None = None) -> tuple[int, int]:
    """The widths of all keys and of all values; ValueError unless heads, or key_heads of keys, divides them."""
    keys, values = round(d_model * expand_k), round(d_model * expand_v)
    if min(keys, values) < 1:
        raise ValueError(f"expand_k={expand_k} and expand_v={expand_v} make widths {keys} and {values}, wanted at least 1 each")
    if keys % (heads if key_heads is None else key_heads) or values % heads:
        found = f"heads={heads} does" if key_heads in (None, heads) else f"key_heads={key_heads} and heads={heads} do"
        raise ValueError(f"{found} not divide key width {keys} and value width {values}: change heads or expand_k, expand_v")
    return keys, values


def empty_state(batch: int, heads: int, k: int, v: int, dtype: Any) -> LinearAttentionState:
    """A state to which nothing is written, in float32 or wider."""
    matrix = jnp.zeros((batch, heads, k, v), jnp.promote_types(jnp.float32, dtype))
    return LinearAttentionState(matrix, jnp.zeros((batch,), jnp.int32))


def log_forget_gate(x: Array, temperature: float) -> Array:
    """log of sigmoid(x)^(1 / temperature), in float32 or wider: a gate near 1 keeps its digits."""
    return jax.nn.log_sigmoid(x.astype(jnp.promote_types(x.dtype, jnp.float32))) / temperature
