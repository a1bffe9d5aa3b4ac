"""Mamba-2 (SSD): a state-space model with one decay per head, which is linear attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.mixers.linear_attention.base import Implementation
from seqzoo.mixers.shapes import STATE, Shape
from seqzoo.nn import Linear, RMSNorm, ShortConvolution
from seqzoo.nn.layer import inner_width
from seqzoo.nn.linear import output_init
from seqzoo.nn.timestep import DT_MAX, DT_MIN, timestep_bias
from seqzoo.specs import Expansion, NonNegative, Positive, Size


class Mamba2State(NamedTuple):
    """Recurrent state, and the last inputs of the convolutions."""

    matrix: Array  # [b, h, n, p] float32 or wider
    tail: Array  # [b, conv_size - 1, e], of x
    bc_tail: Array  # [b, conv_size - 1, 2 groups n], of B and C
    segment: Array  # [b] int32


@register("mamba2")
class Mamba2(Mixer):
    r"""Mamba-2's state-space duality block (Dao & Gu 2024, arXiv:2405.21060).

        z, x, B, C, dt = W_in u        x, B, C = silu(conv(x, B, C))        dt = clip(softplus(dt + b_dt), dt_limit)
        S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T      y = W_out rmsnorm[(C_t^T S_t + D x_t) * silu(z_t)]

    with A < 0 one number per head: e = expand d_model channels in heads of width p. Use it where Mamba would be used and matrix
    units are at hand.

    Raises:
      ValueError: head_dim does not divide e, or groups does not divide the heads; dt_min and dt_max, or dt_limit, out of
        order.
    Cost: time O(t d e + t e n); state 4 e n bytes and conv_size - 1 inputs per row, independent of t.
    W_out is divided by sqrt(count), as in the released language models, where `depth` (index, count) is known. Initial weights are
    drawn as in the released training code; transformers' fresh models have projections from N(0, 0.1^2), no bias of the convolution
    and A = 1, 2, ... instead.
    """

    expand: Expansion = 2.0
    """Number e of channels, as a multiple of d_model."""
    head_dim: Size = 64
    """p, the width of a head, a divisor of e; there are e / p heads."""
    state: Size = 128
    """n, the width of B and C."""
    groups: Size = 1
    """Number of (B, C) pairs, each shared by an equal number of heads; the norm is over e / groups channels."""
    conv_size: Size = 4
    """Kernel size of the short convolution over x, B and C."""
    norm_before_gate: bool = False
    """Order at the output: False (released models): gate, then norm; True: norm, then gate."""
    norm_eps: Positive = 1e-5
    """Epsilon that the norm of the output adds to the mean square."""
    dt_min: Positive = DT_MIN
    """Smallest step size dt at the start, where dt is log-uniform."""
    dt_max: Positive = DT_MAX
    """Largest step size at the start."""
    dt_limit: tuple[NonNegative, Positive | None] = (0.0, None)
    """Smallest and largest step size, to which dt is clipped; None: no largest. The released code clips whole rows and not single
    tokens; here both are clipped, so that they agree."""
    implementation: Implementation | tuple[Implementation, ...] | None = None
    """Implementation of the op `seqzoo.kernels.linear_attention`; None: the fastest for platform and shape."""

    shapes = (
        Shape({}, {"expand": 1, "head_dim": 1, "state": 1}),  # one square head
        Shape({"expand": 2.0, "head_dim": 64}, {"state": 1}, STATE),
        Shape({}, {"expand": 2, "head_dim": 1, "state": 1}),  # two
        Shape({"expand": 1.0, "head_dim": 64}, {"state": 1}, STATE),
    )

    def setup(self, rngs, depth):
        d_model, groups, dtype, kwargs = self.d_model, self.groups, self.param_dtype, self.factory_kwargs(rngs)
        self.inner_dim = e = inner_width(d_model, self.expand)
        if e % self.head_dim:
            raise ValueError(f"head_dim={self.head_dim} does not divide expand * d_model = {e}: change head_dim or expand")
        low, high = self.dt_limit
        if high is not None and low > high:
            raise ValueError(f"dt_limit={self.dt_limit}: wanted the smaller step size first")
        self.heads = heads = e // self.head_dim
        if heads % groups:
            raise ValueError(f"groups={groups} does not divide the {heads} heads: change groups or head_dim")
        # One projection in the released code; separate here, so that heads can be sharded while all devices share B and C.
        self.z, self.x, self.dt = (Linear(d_model, width, **kwargs) for width in (e, e, heads))
        self.bc = Linear(d_model, 2 * groups * self.state, axes=("embed", None), **kwargs)
        self.convolution = ShortConvolution(e, self.conv_size, **kwargs)
        self.bc_convolution = ShortConvolution(2 * groups * self.state, self.conv_size, axis=None, **kwargs)
        dt_bias = timestep_bias(rngs.params(), (heads,), dtype, self.dt_min, self.dt_max)
        self.dt_bias = nnx.Param(dt_bias, axes=("heads",), decay=False)
        a = jax.random.uniform(rngs.params(), (heads,), dtype, 1.0, 16.0)  # Dao & Gu 2024, released code
        self.a_log = nnx.Param(jnp.log(a), axes=("heads",), decay=False)
        self.skip = nnx.Param(jnp.ones((heads,), dtype), axes=("heads",), decay=False)
        self.norm = RMSNorm(e, eps=self.norm_eps, axis="heads", groups=groups, param_dtype=dtype)
        self.out = Linear(e, d_model, axes=("heads", "embed"), init=output_init(depth), **kwargs)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        z, bc, dt, x = self.z(x), self.bc(x), self.dt(x), self.x(x)
        tail, bc_tail, segment = (None,) * 3 if state is None else (state.tail, state.bc_tail, state.segment)
        x, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        bc, bc_tail = self.bc_convolution(bc, tail=bc_tail, segment=segment, segment_ids=segment_ids)
        split = lambda y, count: y.reshape(*y.shape[:2], count, -1)
        x, (b, c) = split(jax.nn.silu(x), self.heads), jnp.split(jax.nn.silu(bc), 2, axis=-1)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # decays are products of many steps, so steps are not rounded to bf16
        dt = jnp.clip(jax.nn.softplus(dt.astype(wide) + self.dt_bias[...].astype(wide)[None, None]), *self.dt_limit)
        o, matrix = linear_attention(
            split(c, self.groups),
            split(b, self.groups),
            (x * dt[..., None]).astype(x.dtype),
            log_decay=-dt * jnp.exp(self.a_log[...].astype(wide))[None, None],
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state, "matrix"),
        )
        y = (o + self.skip[...].astype(x.dtype)[None, None, :, None] * x).reshape(z.shape)
        gate = jax.nn.silu(z)
        y = self.norm(y) * gate if self.norm_before_gate else self.norm(y * gate)
        return self.out(y), next_state(state, segment_ids, matrix=matrix, tail=tail, bc_tail=bc_tail)

    def init_state(self, batch: int, max_length: int | None = None, dtype: Any = None) -> Mamba2State:
        """An empty state; `max_length` has no influence on its size."""
        dtype = self.cache_dtype(dtype)
        matrix = jnp.zeros((batch, self.heads, self.state, self.head_dim), jnp.promote_types(jnp.float32, dtype))
        tail, bc_tail = self.convolution.init_state(batch, dtype), self.bc_convolution.init_state(batch, dtype)
        return Mamba2State(matrix, tail, bc_tail, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length):
        e, n = self.inner_dim, self.state
        projections = self.d_model * (3 * e + 2 * self.groups * n + self.heads)
        return batch * length * (2 * projections + 4 * e * n)
