"""Griffin's recurrent block: a short convolution and the real-gated linear recurrent unit, between two projections."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.kernels.common import segments
from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.recurrence import BranchedRecurrence, cells
from seqzoo.nn import BlockDiagonal, Linear, ShortConvolution

RATE = 8.0  # De et al. 2024: the paper's c
LOWEST, HIGHEST = 0.9, 0.999  # of a at the start, at an open gate
NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
TAPS = jax.nn.initializers.variance_scaling(0.01, "fan_in", "normal")


@register("rg_lru")
class RGLRU(BranchedRecurrence):
    r"""Griffin's and Hawk's recurrent block (De et al. 2024, arXiv:2402.19427).

        u = conv(W_x x + b_x)        r_t = sigmoid(W_a u_t + b_a)        i_t = sigmoid(W_i u_t + b_i)
        h_t = a_t * h_{t-1} + m_t * i_t * u_t        log a_t = -8 r_t softplus(p)        m_t = sqrt(1 - a_t^2)
        y_t = W_out [gelu(W_y x_t + b_y) * h_t] + b_out

    with W_a and W_i block-diagonal, p a vector, and m = 1 at a document's first token. Use it beside attention with a window, as
    Griffin does: it keeps the gist of what the window has left behind, in a vector.

    Args:
      d_model: width of x and y.
      expand: cells e over d_model.
      heads: blocks of W_a and W_i.
      conv_size: taps of the short convolution.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
      depth: (index, count) of the layer; W_out starts with variance 2 / (count e), as in the released models. None: 1 / e.
    Raises:
      ValueError: expand leaves no cell; heads does not divide them; conv_size < 1.
    Cost: time O(t d e + t e^2 / heads); state 4 e bytes and conv_size - 1 inputs per row, independent of t.
    exp(-softplus(p)) is the paper's sigmoid(Lambda), with p = -Lambda; its square starts uniform between 0.9^2 and 0.999^2. m = 1
    at the start is RecurrentGemma's code, which also clips the slope of the square root at 1000; here it is exact, and 0 where m
    is. Gates start with variance heads / e, as in DeepMind's code; Hugging Face's has a hundredth of that.
    Parameters bear the names of RecurrentGemma's checkpoints: linear_x, linear_y, conv_1d, linear_out, and of `rg_lru.` there
    recurrent_param, recurrent_gate and input_gate, whose blocks are [heads, in, out].
    """

    approximate_gelu = True

    def __init__(
        self,
        d_model,
        *,
        expand=1.0,
        heads=4,
        conv_size=4,
        implementation=None,
        depth=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = cells(d_model, expand)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        last = 1.0 if depth is None else 2.0 / depth[1]
        last = jax.nn.initializers.variance_scaling(last, "fan_in", "normal")
        self.linear_x, self.linear_y = (Linear(d_model, e, bias=True, init=NORMAL, **settings) for _ in range(2))
        self.conv_1d = ShortConvolution(e, conv_size, init=TAPS, **settings)
        self.recurrent_gate, self.input_gate = (
            BlockDiagonal(e, e, heads=heads, bias=True, init=NORMAL, **settings) for _ in range(2)
        )
        square = jax.random.uniform(rngs.params(), (e,), jnp.float32, LOWEST**2, HIGHEST**2)
        recurrent = jnp.log(jnp.expm1(-0.5 * jnp.log(square)))  # softplus of it is -log a
        self.recurrent_param = nnx.Param(recurrent.astype(param_dtype), axes=("heads",), decay=False)
        self.linear_out = Linear(e, d_model, axes=("heads", "embed"), bias=True, init=last, **settings)
        self.sizes, self.heads, self.implementation = (d_model, e), heads, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def gates(self, u, state, segment_ids):
        wide = jnp.promote_types(u.dtype, jnp.float32)
        keep, write = (jax.nn.sigmoid(gate(u).astype(wide)) for gate in (self.recurrent_gate, self.input_gate))
        log_decay = -RATE * jax.nn.softplus(self.recurrent_param[...].astype(wide))[None, None] * keep
        rest = -jnp.expm1(2 * log_decay)  # 1 - a^2
        multiplier = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)
        segment = jnp.zeros(u.shape[:1], jnp.int32) if state is None else state.segment
        first = segments.first_tokens(segment_ids, segment, u.shape[1])
        multiplier = jnp.where(first[..., None], 1, multiplier)
        return log_decay, multiplier * write * u.astype(wide)

    def flops(self, batch, length) -> int:
        d_model, e = self.sizes
        return batch * length * (6 * d_model * e + 4 * e * e // self.heads)
