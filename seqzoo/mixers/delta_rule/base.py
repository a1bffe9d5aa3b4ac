"""Base of the delta-rule mixers: projections, short convolutions, beta, a norm and an output gate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention.delta_rule import delta_rule, l2_normalise
from seqzoo.mixers.base import Mixer, next_state, state_kwargs
from seqzoo.mixers.linear_attention.base import Implementation, empty_state, widths
from seqzoo.nn import Linear, RMSNorm, ShortConvolution
from seqzoo.nn.step_decay import StepDecay
from seqzoo.specs import Positive, Size

EPS = 1e-6  # added to the square of a key's length: fla and Qwen


class DeltaRuleState(NamedTuple):
    """Recurrent state, and the last inputs of the three convolutions."""

    matrix: Array  # [b, h, k, v]
    q_tail: Array  # [b, conv_size - 1, width of all keys]
    k_tail: Array  # [b, conv_size - 1, width of all keys]
    v_tail: Array  # [b, conv_size - 1, h v]
    segment: Array  # [b] int32


class DeltaRuleMixer(Mixer):
    """S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T, S~ = decay_t S_{t-1}; y_t = W_o [gate_t * rmsnorm(scale S_t^T q_t)].

    q, k, v are silu(conv(W x)), q and k of unit length per head; subclasses choose the decay and the gate.
    """

    heads: Size = 4
    """Number of heads; the state of each is a matrix [k, v]."""
    conv_size: Size = 4
    """Kernel size of the short convolutions of q, k and v; 1 is only a scale per channel."""
    norm_eps: Positive = 1e-5
    """Epsilon that the norm of the output adds to the mean square."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_attention`; None: the fastest for platform and shape."""

    def make_layers(
        self,
        rngs: nnx.Rngs,
        expand_k: float,
        expand_v: float,
        *,
        key_heads: int | None = None,
        negative_eigenvalues: bool = False,
        steps: int = 1,
    ) -> None:
        """Makes all layers; a subclass calls it in `setup`.

        Args:
          expand_k, expand_v: widths of all keys and of all values of a step, over d_model.
          key_heads: number of keys and of queries, each for heads / key_heads value heads in a row; None: as many as heads.
          negative_eigenvalues: whether beta is in (0, 2) instead of (0, 1).
          steps: keys, values and betas per token.
        """
        self.query_heads = self.heads if key_heads is None else key_heads
        if self.heads % self.query_heads:
            raise ValueError(f"key_heads={key_heads} does not divide heads={self.heads}: set key_heads to a divisor")
        keys, values = widths(self.d_model, self.heads, expand_k, expand_v, self.query_heads)
        self.key_dim, self.value_dim = keys // self.query_heads, values // self.heads
        self.beta_max, self.steps_per_token = 2.0 if negative_eigenvalues else 1.0, steps
        kwargs, sizes = self.factory_kwargs(rngs), (keys, steps * keys, steps * values)
        self.q, self.k, self.v = (Linear(self.d_model, size, **kwargs) for size in sizes)
        convolutions = (ShortConvolution(size, self.conv_size, bias=False, **kwargs) for size in sizes)
        self.q_convolution, self.k_convolution, self.v_convolution = convolutions
        self.beta = Linear(self.d_model, steps * self.heads, **kwargs)
        self.make_gates(rngs)
        self.norm = RMSNorm(self.value_dim, eps=self.norm_eps, axis=None, param_dtype=self.param_dtype)
        self.out = Linear(values, self.d_model, axes=("heads", "embed"), **kwargs)

    def make_gates(self, rngs: nnx.Rngs) -> None:
        """Makes the layers of decay and output gate, if there are any."""

    def log_decay(self, x: Array) -> Array | None:
        """x [b, t, d_model] -> None, [b, t, h] or [b, t, h, k], at most 0."""
        return None

    def gated(self, x: Array, y: Array) -> Array:
        """The normalised outputs y [b, t, h v] times the output gate of x."""
        return y

    def split_heads(self, x: Array, heads: int) -> Array:
        """[b, t, heads n] -> [b, t, h, n], each of `heads` repeated for the value heads that share it."""
        x = rearrange(x, "b t (h n) -> b t h n", h=heads)
        return x if heads == self.heads else jnp.repeat(x, self.heads // heads, axis=2)

    def project_qkv(self, x: Array, state: Any, segment_ids: Array | None) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        """q, k, v [b, t, h, ...] and the convolutions' tails."""
        segment, outputs, tails = None if state is None else state.segment, [], {}
        for name, heads in (("q", self.query_heads), ("k", self.query_heads), ("v", self.heads)):
            tail = None if state is None else getattr(state, f"{name}_tail")
            projection, convolution = getattr(self, name), getattr(self, f"{name}_convolution")
            y, tails[f"{name}_tail"] = convolution(projection(x), tail=tail, segment=segment, segment_ids=segment_ids)
            outputs.append(self.split_heads(jax.nn.silu(y), heads))
        q, k, v = outputs
        return (q, k, v), tails

    def recur(self, q: Array, k: Array, v: Array, beta: Array, log_decay: Array | None, **kwargs: Any) -> tuple[Array, Array]:
        """(o [b, t, h, v], the state's matrix after the last token) of q and k not yet of unit length."""
        return delta_rule(l2_normalise(q, EPS), l2_normalise(k, EPS), v, beta, log_decay, **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        (q, k, v), tails = self.project_qkv(x, state, segment_ids)
        beta = self.beta(x)
        beta = self.beta_max * jax.nn.sigmoid(beta.astype(jnp.promote_types(beta.dtype, jnp.float32)))
        kwargs = {"segment_ids": segment_ids, "implementation": self.implementation, **state_kwargs(state, "matrix")}
        o, matrix = self.recur(q, k, v, beta, self.log_decay(x), **kwargs)
        y = self.gated(x, rearrange(self.norm(o), "b t h v -> b t (h v)"))
        return self.out(y), next_state(state, segment_ids, matrix=matrix, **tails)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> DeltaRuleState:
        """An empty state; `max_length` has no influence on its size."""
        dtype = self.cache_dtype(dtype)
        matrix, segment = empty_state(batch, self.heads, self.key_dim, self.value_dim, dtype)
        convolutions = (self.q_convolution, self.k_convolution, self.v_convolution)
        q_tail, k_tail, v_tail = (convolution.init_state(batch, dtype) for convolution in convolutions)
        return DeltaRuleState(matrix, q_tail, k_tail, v_tail, segment)

    def flops(self, batch: int, length: int) -> int:
        heads, steps, k, v = self.heads, self.steps_per_token, self.key_dim, self.value_dim
        keys, values = (1 + steps) * self.query_heads * k, heads * ((1 + steps) * v + steps)
        return batch * length * (2 * self.d_model * (keys + values) + 6 * steps * heads * k * v)


class GatedDeltaRuleMixer(DeltaRuleMixer):
    """Delta rule with Mamba-2's decay before it and a swish output gate."""

    def make_gates(self, rngs: nnx.Rngs) -> None:
        kwargs = self.factory_kwargs(rngs)
        self.decay_in = Linear(self.d_model, self.heads, **kwargs)
        self.decay = StepDecay(self.heads, low=0.01, param_dtype=self.param_dtype, rngs=rngs)
        self.gate = Linear(self.d_model, self.heads * self.value_dim, **kwargs)

    def log_decay(self, x: Array) -> Array | None:
        return self.decay(self.decay_in(x))

    def gated(self, x: Array, y: Array) -> Array:
        return jax.nn.silu(self.gate(x)) * y

    def flops(self, batch: int, length: int) -> int:
        return super().flops(batch, length) + batch * length * 2 * self.d_model * self.heads * (self.value_dim + 1)
