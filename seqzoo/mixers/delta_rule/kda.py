"""Kimi delta attention: the delta rule with a decay per key channel."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.delta_rule.base import DeltaRuleMixer
from seqzoo.mixers.shapes import square_heads
from seqzoo.nn import LowRank
from seqzoo.nn.step_decay import StepDecay
from seqzoo.specs import Expansion, Size


@register("kda")
class KimiDeltaAttention(DeltaRuleMixer):
    r"""Kimi delta attention (Kimi Team 2025, arXiv:2510.26692).

        S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T        S~ = Diag(exp g_t) S_{t-1}        g_t = -A softplus(W_2 W_1 x_t + b)
        y_t = W_o [sigmoid(W_4 W_3 x_t + c) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)
        q, k, v = silu(conv(W x)), then q / |q|, k / |k|

    Use it in place of Gated DeltaNet if each channel should forget at its own rate.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    gate_rank: Size | None = None
    """Inner width of W_2 W_1 and of W_4 W_3; None: v, as in the released models."""
    gate_bias: bool = False
    """Adds the bias c to the output gate: absent in Kimi-Linear's layers, present in flash-linear-attention's."""
    negative_eigenvalues: bool = False
    """Doubles beta, to the range (0, 2) (Grazzi et al. 2024, arXiv:2411.12537)."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        self.make_layers(rngs, self.expand_k, self.expand_v, negative_eigenvalues=self.negative_eigenvalues)

    def make_gates(self, rngs: nnx.Rngs) -> None:
        keys, values, kwargs = self.heads * self.key_dim, self.heads * self.value_dim, self.factory_kwargs(rngs)
        rank = self.value_dim if self.gate_rank is None else self.gate_rank
        self.decay_in = LowRank(self.d_model, rank, keys, **kwargs)
        self.gate = LowRank(self.d_model, rank, values, bias=jnp.zeros(values) if self.gate_bias else None, **kwargs)
        self.decay = StepDecay(self.heads, self.key_dim, low=1.0, param_dtype=self.param_dtype, rngs=rngs)

    def log_decay(self, x):
        return self.decay(self.decay_in(x))

    def gated(self, x, y):
        return jax.nn.sigmoid(self.gate(x)).astype(y.dtype) * y

    def flops(self, batch, length):
        return super().flops(batch, length) + batch * length * (self.decay_in.flops_per_token + self.gate.flops_per_token)
