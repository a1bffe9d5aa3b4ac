"""Griffin's recurrent block: a short convolution and the real-gated linear recurrent unit, between two projections."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.kernels.common import segments
from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import NORMAL, RecurrentBlockMixer
from seqzoo.mixers.shapes import Shape
from seqzoo.nn import BlockDiagonal
from seqzoo.specs import Size

RATE = 8.0  # De et al. 2024: the paper's c
LOWEST, HIGHEST = 0.9, 0.999  # of a at the start, at an open gate
CONV_INIT = jax.nn.initializers.variance_scaling(0.01, "fan_in", "normal")


@register("rg_lru")
class RGLRU(RecurrentBlockMixer):
    r"""Griffin's and Hawk's recurrent block (De et al. 2024, arXiv:2402.19427).

        u = conv(W_x x + b_x)        r_t = sigmoid(W_a u_t + b_a)        i_t = sigmoid(W_i u_t + b_i)
        h_t = a_t * h_{t-1} + m_t * i_t * u_t        log a_t = -8 r_t softplus(p)        m_t = sqrt(1 - a_t^2)
        y_t = W_out [gelu(W_y x_t + b_y) * h_t] + b_out

    with W_a and W_i block-diagonal, p a vector, and m = 1 at a document's first token. Where `positions` are given, m = 1 and a = 0
    at position 0 and nowhere else, as in the released code: a row may start inside a document. Use it together with windowed
    attention, as Griffin does: it keeps a summary, in a vector, of the tokens that have left the window.

    Raises:
      ValueError: expand leaves no hidden unit; heads does not divide them.
    Cost: time O(t d e + t e^2 / heads); state 4 e bytes and conv_size - 1 inputs per row, independent of t.
    W_out starts with variance 2 / (count e), as in the released models, where `depth` (index, count) is known; else 1 / e.
    exp(-softplus(p)) is the paper's sigmoid(Lambda), with p = -Lambda; its square starts uniform between 0.9^2 and 0.999^2. m = 1
    at the start is RecurrentGemma's code, which also clips the slope of the square root at 1000; here it is exact, and 0 where m
    is. Gates start with variance heads / e, as in DeepMind's code; Hugging Face's has a hundredth of that.
    Parameters have the names of RecurrentGemma's checkpoints: linear_x, linear_y, conv_1d, linear_out, and of `rg_lru.` there
    recurrent_param, recurrent_gate and input_gate, whose blocks are [heads, in, out].
    """

    heads: Size = 4
    """Number of blocks of W_a and W_i."""

    approximate_gelu = True
    shapes = (Shape({"heads": 4}, {"expand": 4}), Shape({"heads": 8}, {"expand": 8}))

    def setup(self, rngs, depth):
        variance = 1.0 if depth is None else 2.0 / depth[1]
        out_init = jax.nn.initializers.variance_scaling(variance, "fan_in", "normal")
        self.make_layers(rngs, bias=True, conv_init=CONV_INIT, out_init=out_init)

    def make_gates(self, rngs):
        kwargs = {"heads": self.heads, "bias": True, "init": NORMAL, **self.factory_kwargs(rngs)}
        e = self.hidden_size
        self.recurrent_gate, self.input_gate = (BlockDiagonal(e, e, **kwargs) for _ in range(2))
        square = jax.random.uniform(rngs.params(), (e,), jnp.float32, LOWEST**2, HIGHEST**2)
        recurrent = jnp.log(jnp.expm1(-0.5 * jnp.log(square)))  # softplus of it is -log a
        self.recurrent_param = nnx.Param(recurrent.astype(self.param_dtype), axes=("heads",), decay=False)

    def decay_and_input(self, u, state, segment_ids, positions):
        wide = jnp.promote_types(u.dtype, jnp.float32)
        recurrent, weight = (jax.nn.sigmoid(gate(u).astype(wide)) for gate in (self.recurrent_gate, self.input_gate))
        log_decay = -RATE * jax.nn.softplus(self.recurrent_param[...].astype(wide))[None, None] * recurrent
        square = -jnp.expm1(2 * log_decay)  # 1 - a^2
        multiplier = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        if positions is None:
            segment = jnp.zeros(u.shape[:1], jnp.int32) if state is None else state.segment
            first = segments.first_tokens(segment_ids, segment, u.shape[1])[..., None]
        else:
            first = (positions == 0)[..., None]
            log_decay = jnp.where(first, -jnp.inf, log_decay)
        multiplier = jnp.where(first, 1, multiplier)
        return log_decay, multiplier * weight * u.astype(wide)

    def flops(self, batch, length):
        return batch * length * (6 * self.d_model * self.hidden_size + 4 * self.hidden_size**2 // self.heads)
