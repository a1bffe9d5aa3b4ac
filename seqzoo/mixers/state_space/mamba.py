"""Mamba (S6): a state-space model whose step size, input and output depend on the token."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.selective_scan import selective_scan
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import Linear, ShortConvolution
from seqzoo.nn.layer import inner_width
from seqzoo.nn.linear import output_init
from seqzoo.nn.timestep import DT_MAX, DT_MIN, timestep_bias
from seqzoo.specs import Expansion, Positive, Size

Implementation = Literal["reference", "recurrent", "chunkwise"]
"""Name of an implementation of `seqzoo.kernels.selective_scan`."""


class MambaState(NamedTuple):
    """Recurrent state, and the last inputs of the convolution."""

    hidden: Array  # [b, e, n] float32 or wider
    tail: Array  # [b, conv_size - 1, e]
    segment: Array  # [b] int32


@register("mamba")
class Mamba(Mixer):
    r"""Mamba's selective state-space block (Gu & Dao 2023, arXiv:2312.00752).

        x, z = W_in u        x = silu(conv(x))        dt, B, C = W_x x        dt = softplus(W_dt dt + b_dt)
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t      y = W_out [(C_t h_t + D x_t) * silu(z_t)]

    with A < 0 diagonal per channel: e = expand d_model channels of n states each. Use it for long sequences whose single tokens
    carry little information; its state is small, and its recall too.

    Raises:
      ValueError: expand leaves no channel; dt_min and dt_max out of order.
    Cost: time O(t d e + t e n); state 4 e n bytes and conv_size - 1 inputs per row, independent of t.
    The discretisation is the released code's (Euler for B), not the paper's zero-order hold. W_out is divided by sqrt(count), as in
    the released language models, where `depth` (index, count) is known. Initial weights are drawn as in the released training code;
    transformers' fresh models have projections from N(0, 0.1^2) and no bias of the convolution instead.
    """

    expand: Expansion = 2.0
    """Number e of channels, as a multiple of d_model."""
    state: Size = 16
    """n, the number of states per channel."""
    conv_size: Size = 4
    """Kernel size of the short convolution."""
    dt_rank: Size | None = None
    """Inner width of the step size's projection; None: d_model / 16, rounded up."""
    dt_min: Positive = DT_MIN
    """Smallest step size dt at the start, where dt is log-uniform."""
    dt_max: Positive = DT_MAX
    """Largest step size at the start."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.selective_scan`; None: the fastest for platform and shape."""

    shapes = (
        Shape({"expand": 2.0}, {"state": 1}, STATE),
        Shape({"state": 16}, {"expand": 1}),
        Shape({"expand": 1.0}, {"state": 1}, STATE),
    )

    def setup(self, rngs, depth):
        d_model, n, dtype, kwargs = self.d_model, self.state, self.param_dtype, self.factory_kwargs(rngs)
        self.inner_dim = e = inner_width(d_model, self.expand)
        self.rank = rank = math.ceil(d_model / 16) if self.dt_rank is None else self.dt_rank
        symmetric = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -(rank**-0.5), rank**-0.5)
        self.x, self.z = Linear(d_model, e, **kwargs), Linear(d_model, e, **kwargs)
        self.convolution = ShortConvolution(e, self.conv_size, **kwargs)
        self.select = Linear(e, rank + 2 * n, axes=("heads", None), **kwargs)
        self.dt = Linear(rank, e, axes=(None, "heads"), init=symmetric, **kwargs)
        dt_bias = timestep_bias(rngs.params(), (e,), dtype, self.dt_min, self.dt_max)
        self.dt_bias = nnx.Param(dt_bias, axes=("heads",), decay=False)
        a_log = jnp.log(jnp.arange(1, n + 1, dtype=dtype))
        self.a_log = nnx.Param(jnp.broadcast_to(a_log[None], (e, n)), axes=("heads", "state"), decay=False)
        self.skip = nnx.Param(jnp.ones((e,), dtype), axes=("heads",), decay=False)
        self.out = Linear(e, d_model, axes=("heads", "embed"), init=output_init(depth), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        x, z = self.x(x), self.z(x)
        tail, segment = (None, None) if state is None else (state.tail, state.segment)
        x, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        x = jax.nn.silu(x)
        dt, b, c = jnp.split(self.select(x), (self.rank, self.rank + self.state), axis=-1)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # decays are products of many steps, so steps are not rounded to bf16
        dt = jax.nn.softplus(self.dt(dt).astype(wide) + self.dt_bias[...].astype(wide)[None, None])
        y, hidden = selective_scan(
            x,
            dt,
            -jnp.exp(self.a_log[...].astype(wide)),
            b,
            c,
            D=self.skip[...].astype(wide),
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "hidden"),
        )
        return self.out(y * jax.nn.silu(z)), next_state(state, segment_ids, hidden=hidden, tail=tail)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> MambaState:
        """An empty state; `max_length` has no influence on its size."""
        dtype = self.cache_dtype(dtype)
        hidden = jnp.zeros((batch, self.inner_dim, self.state), jnp.promote_types(jnp.float32, dtype))
        return MambaState(hidden, self.convolution.init_state(batch, dtype), jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        e, n = self.inner_dim, self.state
        projections = 3 * self.d_model * e + e * (self.rank + 2 * n) + self.rank * e
        return batch * length * (2 * projections + 4 * e * n)
