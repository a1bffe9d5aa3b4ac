"""Mamba-2 (SSD): a state-space model with one decay per head, which is linear attention."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.mixers.base import Mixer, next_state, register, state_kwargs
from seqzoo.nn import Linear, RMSNorm, ShortConvolution
from seqzoo.nn.linear import output_init
from seqzoo.nn.timestep import DT_MAX, DT_MIN, timestep_bias


class Mamba2State(NamedTuple):
    """The memory and the convolution's last inputs."""

    memory: Array  # [b, h, n, p]
    tail: Array  # [b, conv_size - 1, e], of x
    bc_tail: Array  # [b, conv_size - 1, 2 groups n], of B and C
    segment: Array  # [b] int32


@register("mamba2")
class Mamba2(Mixer):
    r"""Mamba-2's state-space duality block (Dao & Gu 2024, arXiv:2405.21060).

        z, x, B, C, dt = W_in u        x, B, C = silu(conv(x, B, C))        dt = softplus(dt + b_dt)
        S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T      y = W_out rmsnorm[(C_t^T S_t + D x_t) * silu(z_t)]

    with A < 0 one number per head: e = expand d_model channels in heads of width p. Use it where Mamba would be used and matrix
    units are at hand.

    Args:
      d_model: width of the block's input and output.
      expand: e over d_model.
      head_dim: p; heads = e / p.
      state: n, the width of B and C.
      groups: how many (B, C) pairs the heads share; the norm runs over e / groups channels.
      conv_size: taps of the short convolution over x, B and C.
      norm_before_gate: False (released models): gate, then norm; True: norm, then gate.
      norm_eps: what the norm adds to the mean square.
      dt_min, dt_max: range of the step size at the start.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
      depth: (index, count) of the layer; W_out is divided by sqrt(count), as in the released language models. None: not divided.
    Raises:
      ValueError: head_dim does not divide e, or groups does not divide the heads.
    Cost: time O(t d e + t e n); state 4 e n bytes and conv_size - 1 inputs per row, independent of t.
    """

    def __init__(
        self,
        d_model,
        *,
        expand=2,
        head_dim=64,
        state=128,
        groups=1,
        conv_size=4,
        norm_before_gate=False,
        norm_eps=1e-5,
        dt_min=DT_MIN,
        dt_max=DT_MAX,
        implementation=None,
        depth: tuple[Any, int] | None = None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = round(expand * d_model)
        if e % head_dim:
            raise ValueError(f"head_dim={head_dim} does not divide expand * d_model = {e}: change head_dim or expand")
        heads = e // head_dim
        if heads % groups:
            raise ValueError(f"groups={groups} does not divide the {heads} heads: change groups or head_dim")
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        # One product in the released code; apart, so that heads can lie on several devices while all of these share B and C.
        self.z, self.x, self.dt = (Linear(d_model, width, **settings) for width in (e, e, heads))
        self.bc = Linear(d_model, 2 * groups * state, axes=("embed", None), **settings)
        self.convolution = ShortConvolution(e, conv_size, **settings)
        self.bc_convolution = ShortConvolution(2 * groups * state, conv_size, axis=None, **settings)
        self.dt_bias = nnx.Param(timestep_bias(rngs.params(), (heads,), param_dtype, dt_min, dt_max), axes=("heads",), decay=False)
        a = jax.random.uniform(rngs.params(), (heads,), param_dtype, 1.0, 16.0)  # Dao & Gu 2024, released code
        self.a_log = nnx.Param(jnp.log(a), axes=("heads",), decay=False)
        self.skip = nnx.Param(jnp.ones((heads,), param_dtype), axes=("heads",), decay=False)
        self.norm = RMSNorm(e, eps=norm_eps, axis="heads", groups=groups, param_dtype=param_dtype)
        self.out = Linear(e, d_model, axes=("heads", "embed"), init=output_init(depth), **settings)
        self.sizes = (d_model, e, heads, head_dim, groups, state)
        self.norm_before_gate, self.implementation = norm_before_gate, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        _, _, heads, _, groups, _ = self.sizes
        z, bc, dt, x = self.z(x), self.bc(x), self.dt(x), self.x(x)
        tail, bc_tail, segment = (None,) * 3 if state is None else (state.tail, state.bc_tail, state.segment)
        x, tail = self.convolution(x, tail=tail, segment=segment, segment_ids=segment_ids)
        bc, bc_tail = self.bc_convolution(bc, tail=bc_tail, segment=segment, segment_ids=segment_ids)
        split = lambda y, count: y.reshape(*y.shape[:2], count, -1)
        x, (b, c) = split(jax.nn.silu(x), heads), jnp.split(jax.nn.silu(bc), 2, axis=-1)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # decays are products of many steps, so steps are not rounded to bf16
        dt = jax.nn.softplus(dt.astype(wide) + self.dt_bias[...].astype(wide)[None, None])
        o, memory = linear_attention(
            split(c, groups),
            split(b, groups),
            (x * dt[..., None]).astype(x.dtype),
            log_decay=-dt * jnp.exp(self.a_log[...].astype(wide))[None, None],
            scale=1.0,
            segment_ids=segment_ids,
            implementation=self.implementation,
            **state_kwargs(state),
        )
        y = (o + self.skip[...].astype(x.dtype)[None, None, :, None] * x).reshape(z.shape)
        gate = jax.nn.silu(z)
        y = self.norm(y) * gate if self.norm_before_gate else self.norm(y * gate)
        return self.out(y), next_state(state, segment_ids, memory=memory, tail=tail, bc_tail=bc_tail)

    def init_state(self, batch, max_length=None, dtype=None) -> Mamba2State:
        """An empty memory; `max_length` has no bearing on its size."""
        _, _, heads, p, _, n = self.sizes
        dtype = self.dtype if dtype is None else dtype
        memory = jnp.zeros((batch, heads, n, p), jnp.promote_types(jnp.float32, dtype))
        tails = (convolution.init_state(batch, dtype) for convolution in (self.convolution, self.bc_convolution))
        return Mamba2State(memory, *tails, jnp.zeros((batch,), jnp.int32))

    def flops(self, batch, length) -> int:
        d_model, e, heads, _, groups, n = self.sizes
        projections = d_model * (3 * e + 2 * groups * n + heads)
        return batch * length * (2 * projections + 4 * e * n)
