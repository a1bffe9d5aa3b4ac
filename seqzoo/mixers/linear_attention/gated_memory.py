"""What gated matrix memories have in common: projections, the memory, a norm and an output gate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, state_kwargs
from seqzoo.nn import Linear, RMSNorm, torch_uniform

SMALL_XAVIER = jax.nn.initializers.variance_scaling(2**-5, "fan_avg", "uniform")  # gain 2^-2.5: Sun et al.'s and Yang et al.'s code


class MemoryState(NamedTuple):
    """What has been written so far, decayed."""

    memory: Array  # [b, h, k, v]
    segment: Array  # [b] int32


class GatedMemory(Mixer):
    """S_t = decay_t S_{t-1} + k_t v_t^T,  y_t = W_o [gate(W_r x_t) * rmsnorm(scale q_t^T S_t)]; subclasses choose the decay.

    `joint_norm` makes a norm over all heads' values side by side; None: an RMSNorm per head, with one learned scale for all.
    """

    output_gate = staticmethod(jax.nn.swish)

    def __init__(
        self,
        d_model,
        *,
        heads,
        expand_k,
        expand_v,
        scale=None,
        qk_init=torch_uniform,
        v_init=torch_uniform,
        r_init=torch_uniform,
        out_init=torch_uniform,
        joint_norm=None,
        eps=1e-5,
        implementation,
        dtype,
        param_dtype,
        rngs,
    ):
        keys, values = widths(d_model, heads, expand_k, expand_v)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.sizes = (d_model, heads, keys // heads, values // heads)
        self.q, self.k = (Linear(d_model, keys, init=qk_init, **settings) for _ in range(2))
        self.v, self.r = (Linear(d_model, values, init=init, **settings) for init in (v_init, r_init))
        self.make_decay(**settings)
        if joint_norm is None:
            self.norm = RMSNorm(values // heads, eps=eps, axis=None, param_dtype=param_dtype)
        else:
            self.norm = joint_norm(values, axis="heads", param_dtype=param_dtype)
        self.normed = values // heads if joint_norm is None else values
        self.out = Linear(values, d_model, axes=("heads", "embed"), init=out_init, **settings)
        self.scale, self.implementation = scale, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def make_decay(self, **settings) -> None:
        """Sets the decay's parameters, if it has any."""

    def log_decay(self, x: Array) -> Array:
        """x [b, t, d_model] -> [h], [b, t, h] or [b, t, h, k]."""
        raise NotImplementedError

    def split(self, x: Array) -> Array:
        """[b, t, h n] -> [b, t, h, n]."""
        return x.reshape(*x.shape[:2], self.sizes[1], -1)

    def project(self, x: Array) -> tuple[Array, ...]:
        """q, k [b, t, h, k] and v [b, t, h, v] of x."""
        return tuple(self.split(p(x)) for p in (self.q, self.k, self.v))

    def attend(self, q, k, v, log_decay, state, segment_ids) -> tuple[Array, Array]:
        """(o [b, t, h, v], the memory after the last token)."""
        settings = {"scale": self.scale, "segment_ids": segment_ids, "implementation": self.implementation}
        return linear_attention(q, k, v, log_decay=log_decay, **settings, **state_kwargs(state))

    def finish(self, x: Array, o: Array) -> Array:
        """y [b, t, d_model] of what was read, o [b, t, h, v]."""
        o = self.norm(o.reshape(*x.shape[:2], -1, self.normed)).reshape(*x.shape[:2], -1)
        gate = self.output_gate(self.r(x))
        return self.out(gate * o.astype(gate.dtype))

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        o, memory = self.attend(*self.project(x), self.log_decay(x), state, segment_ids)
        return self.finish(x, o), next_state(state, segment_ids, memory=memory)

    def init_state(self, batch, max_length=None, dtype=None) -> MemoryState:
        """An empty memory; `max_length` has no bearing on its size."""
        return empty_memory(batch, *self.sizes[1:], self.dtype if dtype is None else dtype)

    def flops(self, batch, length) -> int:
        d_model, heads, k, v = self.sizes
        return batch * length * heads * (2 * d_model * (2 * k + 3 * v) + 4 * k * v)


def widths(d_model: int, heads: int, expand_k: float, expand_v: float, key_heads: int | None = None) -> tuple[int, int]:
    """The widths of all keys and of all values; ValueError unless heads, or key_heads of keys, divides them."""
    keys, values = round(d_model * expand_k), round(d_model * expand_v)
    if keys % (heads if key_heads is None else key_heads) or values % heads:
        found = f"heads={heads} does" if key_heads in (None, heads) else f"key_heads={key_heads} and heads={heads} do"
        raise ValueError(f"{found} not divide key width {keys} and value width {values}: change heads or expand_k, expand_v")
    return keys, values


def empty_memory(batch: int, heads: int, k: int, v: int, dtype) -> MemoryState:
    """A memory in which nothing is written, in float32 or wider."""
    memory = jnp.zeros((batch, heads, k, v), jnp.promote_types(jnp.float32, dtype))
    return MemoryState(memory, jnp.zeros((batch,), jnp.int32))


def log_gate(x: Array, temperature: float) -> Array:
    """log of sigmoid(x)^(1 / temperature), in float32 or wider: a gate is small beside 1 where it matters most."""
    return jax.nn.log_sigmoid(x.astype(jnp.promote_types(x.dtype, jnp.float32))) / temperature


def positive_temperature(gate_temperature: float) -> float:
    """The setting; ValueError unless it is above 0."""
    if gate_temperature <= 0:
        raise ValueError(f"gate_temperature={gate_temperature}: wanted more than 0")
    return gate_temperature
