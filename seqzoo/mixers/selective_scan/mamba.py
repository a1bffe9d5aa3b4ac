"""Mamba (S6): a state-space model whose step size, input and output depend on the token."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.selective_scan import selective_scan
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.nn import Linear, ShortConvolution
from seqzoo.nn.linear import output_init
from seqzoo.nn.timestep import DT_MAX, DT_MIN, timestep_bias


class MambaState(NamedTuple):
    """The scan's state and the convolution's last inputs."""

    memory: Array  # [b, e, n]
    tail: Array  # [b, conv_size - 1, e]
    segment: Array  # [b] int32


@register("mamba")
class Mamba(Mixer):
    r"""Mamba's selective state-space block (Gu & Dao 2023, arXiv:2312.00752).

        x, z = W_in u        x = silu(conv(x))        dt, B, C = W_x x        dt = softplus(W_dt dt + b_dt)
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t      y = W_out [(C_t h_t + D x_t) * silu(z_t)]

    with A < 0 diagonal per channel: e = expand d_model channels of n states each. Use it for long sequences of tokens that are
    worth little each; its memory is small, and its recall too.

    Args:
      d_model: width of the block's input and output.
      expand: e over d_model.
      state: n, states per channel.
      conv_size: taps of the short convolution.
      dt_rank: inner width of the step size's projection; None: d_model / 16, rounded up.
      dt_min, dt_max: range of the step size at the start.
      implementation: of the op `seqzoo.kernels.selective_scan`; None: the best for platform and shape.
      depth: (index, count) of the layer; W_out is divided by sqrt(count), as in the released language models. None: not divided.
    Cost: time O(t d e + t e n); state 4 e n bytes and conv_size - 1 inputs per row, independent of t.
    The discretisation is the released code's (Euler for B), not the paper's zero-order hold.
    """

    def __init__(
        self,
        d_model,
        *,
        expand=2,
        state=16,
        conv_size=4,
        dt_rank=None,
        dt_min=DT_MIN,
        dt_max=DT_MAX,
        implementation=None,
        depth: tuple[Any, int] | None = None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = round(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        symmetric = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -(rank**-0.5), rank**-0.5)
        self.x, self.z = Linear(d_model, e, **settings), Linear(d_model, e, **settings)
        self.convolution = ShortConvolution(e, conv_size, **settings)
        self.select = Linear(e, rank + 2 * state, axes=("heads", None), **settings)
        self.dt = Linear(rank, e, axes=(None, "heads"), init=symmetric, **settings)
        self.dt_bias = nnx.Param(timestep_bias(rngs.params(), (e,), param_dtype, dt_min, dt_max), axes=("heads",), decay=False)
        a_log = jnp.log(jnp.arange(1, state + 1, dtype=param_dtype))
        self.a_log = nnx.Param(jnp.broadcast_to(a_log[None], (e, state)), axes=("heads", "state"), decay=False)
        self.skip = nnx.Param(jnp.ones((e,), param_dtype), axes=("heads",), decay=False)
        self.out = Linear(e, d_model, axes=("heads", "embed"), init=output_init(depth), **settings)
        self.sizes = (d_model, e, state, rank)
        self.implementation, self.dtype = implementation, param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        _, _, n, rank = self.sizes
        x, z = self.x(x), self.z(x)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        x, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        x = jax.nn.silu(x)
        dt, b, c = jnp.split(self.select(x), (rank, rank + n), axis=-1)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # decays are products of many steps, so steps are not rounded to bf16
        dt = jax.nn.softplus(self.dt(dt).astype(wide) + self.dt_bias[...].astype(wide)[None, None])
        y, memory = selective_scan(
            x,
            dt,
            -jnp.exp(self.a_log[...].astype(wide)),
            b,
            c,
            D=self.skip[...].astype(wide),
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        return self.out(y * jax.nn.silu(z)), next_state(state, segment_ids, memory=memory, tail=tail)

    def init_state(self, batch, max_length=None, dtype=None) -> MambaState:
        """An empty state; `max_length` has no bearing on its size."""
        _, e, n, _ = self.sizes
        dtype = self.dtype if dtype is None else dtype
        memory = jnp.zeros((batch, e, n), jnp.promote_types(jnp.float32, dtype))
        return MambaState(memory, self.convolution.init_state(batch, dtype), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, e, n, rank = self.sizes
        projections = 3 * d_model * e + e * (rank + 2 * n) + rank * e
        return batch * length * (2 * projections + 4 * e * n)
