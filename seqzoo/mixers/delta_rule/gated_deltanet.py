"""Gated DeltaNet: the delta rule with a decay per head."""

from seqzoo.mixers.base import register
from seqzoo.mixers.delta_rule.base import GatedDeltaRuleMixer
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.specs import Expansion, Size


@register("gated_deltanet")
class GatedDeltaNet(GatedDeltaRuleMixer):
    r"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).

        S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T        S~ = exp(g_t) S_{t-1}        g_t = -A softplus(W_a x_t + b)
        y_t = W_o [silu(W_g x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)
        q, k, v = silu(conv(W x)), then q / |q|, k / |k|

    Use it for recall from a small state: it can overwrite a single fact, and it can forget all facts at once.

    Raises:
      ValueError: heads does not divide the widths, or key_heads not heads.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / key_heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    A is uniform in [0.01, 16] at initialisation: the authors' [0, 16] can draw a decay that never learns.
    softplus(b) is log-uniform in [0.001, 0.1], as theirs; fresh models of transformers have b = 1 and forget within a token or two.
    """

    key_heads: Size | None = None
    """Number of key heads and of query heads, a divisor of heads: each is shared by heads / key_heads consecutive value heads, as
    in Qwen3-Next and Qwen3.5; None: as many as heads."""
    expand_k: Expansion = 0.75
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / key_heads."""
    expand_v: Expansion = 1.5
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    negative_eigenvalues: bool = False
    """Doubles beta, to the range (0, 2) (Grazzi et al. 2024, arXiv:2411.12537)."""

    shapes = (*square_heads(1), wide_heads(1, 1, 2), *square_heads(2, 4, 8))

    def setup(self, rngs, depth):
        choices = {"key_heads": self.key_heads, "negative_eigenvalues": self.negative_eigenvalues}
        self.make_layers(rngs, self.expand_k, self.expand_v, **choices)
