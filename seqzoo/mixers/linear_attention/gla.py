"""Gated linear attention: linear attention with a data-dependent forget gate per key channel."""

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.base import XAVIER_SMALL, LinearAttentionMixer, log_forget_gate
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.nn import Linear
from seqzoo.specs import Expansion, Number, Positive, Size


@register("gla")
class GatedLinearAttention(LinearAttentionMixer):
    r"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635).

        S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T        alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/tau)
        y_t = W_o [swish(W_g x_t) * rmsnorm(scale q_t^T S_t)]

    Use it when decode memory must stay constant and recall matters less than with softmax attention.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes per row, independent of t.
    The paper's code scales k by (d / heads)^-0.5 and has a layer norm without a learned scale; fla scales q by k^-0.5 and has an
    RMS norm with one. The defaults here are fla's, with which the released checkpoints run.
    """

    expand_k: Expansion = 0.5
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    gate_rank: Size = 16
    """Inner width of the low-rank gate W_2 W_1."""
    gate_temperature: Positive = 16.0
    """tau; larger values forget more slowly at initialisation."""
    scale: Number | None = None
    """Factor on the queries; None: k^-0.5."""
    norm_eps: Positive = 1e-5
    """Epsilon that the norm of the output adds to the mean square."""

    shapes = (*square_heads(1), wide_heads(1, 1, 2), *square_heads(2, 4, 8))

    def setup(self, rngs, depth):
        self.make_layers(rngs, self.expand_k, self.expand_v, scale=self.scale, qk_init=XAVIER_SMALL, norm_eps=self.norm_eps)

    def make_decay(self, rngs):
        keys, kwargs = self.heads * self.key_dim, self.factory_kwargs(rngs)
        self.forget_down = Linear(self.d_model, self.gate_rank, axes=("embed", None), init=XAVIER_SMALL, **kwargs)
        self.forget_up = Linear(self.gate_rank, keys, axes=(None, "heads"), bias=True, init=XAVIER_SMALL, **kwargs)

    def log_decay(self, x):
        return self.split_heads(log_forget_gate(self.forget_up(self.forget_down(x)), self.gate_temperature))

    def flops(self, batch, length):
        return super().flops(batch, length) + 2 * batch * length * self.gate_rank * (self.d_model + self.heads * self.key_dim)
