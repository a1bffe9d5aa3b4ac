"""DeltaNet: a matrix memory that corrects what a key finds instead of adding to it; and what its gated relatives share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.gated_memory import empty_memory, widths
from seqzoo.nn import Linear, RMSNorm, ShortConvolution
from seqzoo.nn.delta import delta_rule, unit

EPS = 1e-6  # under the root of a key's length: fla and Qwen


class DeltaState(NamedTuple):
    """The memory and the last inputs of the three convolutions."""

    memory: Array  # [b, h, k, v]
    q_tail: Array  # [b, conv_size - 1, width of all keys]
    k_tail: Array  # [b, conv_size - 1, width of all keys]
    v_tail: Array  # [b, conv_size - 1, h v]
    segment: Array  # [b] int32


class DeltaMemory(Mixer):
    """S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T, S~ = decay_t S_{t-1}; y_t = W_o [gate_t * rmsnorm(scale S_t^T q_t)].

    q, k, v are silu(conv(W x)), q and k of unit length per head; subclasses choose the decay and the gate. Each of `key_heads` keys
    and queries serves heads / key_heads memories that follow one another. Of `steps` keys, values and betas per token a subclass's
    `remember` makes something.
    """

    def __init__(
        self,
        d_model,
        *,
        heads,
        expand_k,
        expand_v,
        conv_size,
        norm_eps,
        key_heads=None,
        negative_eigenvalues=False,
        steps=1,
        implementation,
        dtype,
        param_dtype,
        rngs,
    ):
        self.key_heads = heads if key_heads is None else key_heads
        if self.key_heads < 1 or heads % self.key_heads:
            raise ValueError(f"key_heads={key_heads} does not divide heads={heads}: set key_heads to a divisor")
        keys, values = widths(d_model, heads, expand_k, expand_v, self.key_heads)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.sizes = (d_model, heads, keys // self.key_heads, values // heads)
        self.q, self.k, self.v = (Linear(d_model, width, **settings) for width in (keys, steps * keys, steps * values))
        convolution = lambda width: ShortConvolution(width, conv_size, bias=False, **settings)
        self.q_convolution, self.k_convolution, self.v_convolution = map(convolution, (keys, steps * keys, steps * values))
        self.beta = Linear(d_model, steps * heads, **settings)
        self.make_gates(**settings)
        self.norm = RMSNorm(values // heads, eps=norm_eps, axis=None, param_dtype=param_dtype)
        self.out = Linear(values, d_model, axes=("heads", "embed"), **settings)
        self.strongest, self.steps, self.implementation = 2.0 if negative_eigenvalues else 1.0, steps, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def make_gates(self, **settings) -> None:
        """Sets the parameters of decay and gate, if there are any."""

    def log_decay(self, x: Array) -> Array | None:
        """x [b, t, d_model] -> None, [b, t, h] or [b, t, h, k]."""
        return None

    def gate(self, x: Array, y: Array) -> Array:
        """The normed outputs y [b, t, h v], gated by x."""
        return y

    def split(self, x: Array, heads: int) -> Array:
        """[b, t, heads n] -> [b, t, h, n]: each of `heads` is repeated for the memories that it serves."""
        x = x.reshape(*x.shape[:2], heads, -1)
        return x if heads == self.sizes[1] else jnp.repeat(x, self.sizes[1] // heads, axis=2)

    def project(self, x, state, segment_ids) -> tuple[list[Array], dict[str, Array]]:
        """q, k, v [b, t, h, ...] and the convolutions' tails."""
        segment, rows, tails = None if state is None else state.segment, [], {}
        for name in "qkv":
            tail = None if state is None else getattr(state, f"{name}_tail")
            convolution = getattr(self, f"{name}_convolution")
            y, tails[f"{name}_tail"] = convolution(getattr(self, name)(x), tail=tail, segment=segment, segment_ids=segment_ids)
            rows.append(self.split(jax.nn.silu(y), self.sizes[1] if name == "v" else self.key_heads))
        return rows, tails

    def remember(self, q, k, v, strength, log_decay, **settings) -> tuple[Array, Array]:
        """(o [b, t, h, v], the memory after the last token); q and k not yet of unit length."""
        return delta_rule(unit(q, EPS), unit(k, EPS), v, strength, log_decay, **settings)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        (q, k, v), tails = self.project(x, state, segment_ids)
        beta = self.beta(x)
        strength = self.strongest * jax.nn.sigmoid(beta.astype(jnp.promote_types(beta.dtype, jnp.float32)))
        settings = {"segment_ids": segment_ids, "implementation": self.implementation, **state_kwargs(state)}
        o, memory = self.remember(q, k, v, strength, self.log_decay(x), **settings)
        y = self.gate(x, self.norm(o).reshape(*x.shape[:2], -1))
        return self.out(y), next_state(state, segment_ids, memory=memory, **tails)

    def init_state(self, batch, max_length=None, dtype=None) -> DeltaState:
        """An empty memory; `max_length` has no bearing on its size."""
        dtype = self.dtype if dtype is None else dtype
        memory, segment = empty_memory(batch, *self.sizes[1:], dtype)
        tails = (x.init_state(batch, dtype) for x in (self.q_convolution, self.k_convolution, self.v_convolution))
        return DeltaState(memory, *tails, segment)

    def flops(self, batch, length) -> int:
        d_model, heads, k, v = self.sizes
        keys, values = (1 + self.steps) * self.key_heads * k, heads * ((1 + self.steps) * v + self.steps)
        return batch * length * (2 * d_model * (keys + values) + 6 * self.steps * heads * k * v)


@register("deltanet")
class DeltaNet(DeltaMemory):
    r"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174) as Yang et al. 2024, arXiv:2406.06484, have it.

        S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T        beta_t = sigmoid(W_b x_t)
        y_t = W_o rmsnorm(k^-0.5 S_t^T q_t)        q, k, v = silu(conv(W x)), q and k over their lengths

    Use it where facts are overwritten: a key's old value goes when a new one comes. It forgets nothing else. It is gradient descent
    on |S^T k - v|^2 / 2, one step of size beta per token: TTT-Linear (Sun et al. 2024, arXiv:2407.04620) without its norm.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      conv_size: taps of the convolutions of q, k and v; 1 is none but a scale per channel.
      negative_eigenvalues: twice the beta, in (0, 2): a token can mirror what its key finds, which counting modulo 2 needs
        (Grazzi et al. 2024, arXiv:2411.12537).
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; conv_size < 1.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=1.0,
        conv_size=4,
        negative_eigenvalues=False,
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        super().__init__(
            d_model,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            conv_size=conv_size,
            negative_eigenvalues=negative_eigenvalues,
            norm_eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
