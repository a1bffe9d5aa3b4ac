"""Gated DeltaProduct: several steps of the delta rule per token."""

from typing import Annotated

from flax import nnx
from pydantic import Field

from seqzoo.kernels.linear_attention.delta_rule import delta_product, l2_normalise
from seqzoo.mixers.base import register
from seqzoo.mixers.delta_rule.base import EPS, GatedDeltaRuleMixer
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.nn import Linear
from seqzoo.specs import Expansion


@register("gated_deltaproduct")
class GatedDeltaProduct(GatedDeltaRuleMixer):
    r"""Gated DeltaProduct (Siems et al. 2025, arXiv:2502.10297).

        S_t: S~ = exp(g_t) S_{t-1}, then S~ <- S~ + beta_j k_j (v_j - S~^T k_j)^T for j = 1, ..., n
        y_t = W_o [silu(W_g x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_j = 2 sigmoid(W_bj x_t)
        g_t = -A softplus(W_a x_t + b)
        q, k_j, v_j = silu(conv(W x)), then q / |q|, k_j / |k_j|

    Use it for state tracking: a token can rotate the state, as a product of two reflections.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(n t d^2); state 4 d^2 expand_k expand_v / heads bytes and (2 n + 1) (conv_size - 1) inputs per row.
    """

    expand_k: Expansion = 0.75
    """Width of all keys of a step over d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.5
    """Width of all values of a step over d_model; a head has v = d_model expand_v / heads."""
    steps: Annotated[int, Field(ge=1, le=256)] = 2
    """n, steps of the delta rule per token."""
    negative_eigenvalues: bool = True
    """Gives beta the factor 2. If False, beta is in (0, 1) and no token can reflect the state."""
    forget: bool = True
    """Decays the state. If False, g_t is 0."""

    shapes = (*square_heads(1), wide_heads(1, 1, 2), *square_heads(2, 4, 8))

    def setup(self, rngs, depth):
        choices = {"steps": self.steps, "negative_eigenvalues": self.negative_eigenvalues}
        self.make_layers(rngs, self.expand_k, self.expand_v, **choices)

    def make_gates(self, rngs: nnx.Rngs) -> None:
        if self.forget:
            super().make_gates(rngs)
        else:
            self.gate = Linear(self.d_model, self.heads * self.value_dim, **self.factory_kwargs(rngs))

    def log_decay(self, x):
        return super().log_decay(x) if self.forget else None

    def recur(self, q, k, v, beta, log_decay, **kwargs):
        by_step = lambda x: x.reshape(*x.shape[:2], self.steps, self.heads, -1)
        return delta_product(
            l2_normalise(q, EPS), l2_normalise(by_step(k), EPS), by_step(v), by_step(beta)[..., 0], log_decay, **kwargs
        )

    def flops(self, batch, length):
        return super().flops(batch, length) - (0 if self.forget else batch * length * 2 * self.d_model * self.heads)
