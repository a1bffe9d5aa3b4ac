"""DeltaNet: a matrix-valued state in which a token replaces the value stored under its key."""

from seqzoo.mixers.base import register
from seqzoo.mixers.delta_rule.base import DeltaRuleMixer
from seqzoo.mixers.shapes import square_heads
from seqzoo.specs import Expansion


@register("deltanet")
class DeltaNet(DeltaRuleMixer):
    r"""DeltaNet (Schlag et al. 2021, arXiv:2102.11174) in the form of Yang et al. 2024, arXiv:2406.06484.

        S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T        beta_t = sigmoid(W_b x_t)
        y_t = W_o rmsnorm(k^-0.5 S_t^T q_t)        q, k, v = silu(conv(W x)), then q / |q|, k / |k|

    Use it where facts are overwritten: a new value of a key replaces the old one. It forgets nothing else. It is gradient descent
    on |S^T k - v|^2 / 2, one step of size beta per token: TTT-Linear (Sun et al. 2024, arXiv:2407.04620) without its norm.

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    negative_eigenvalues: bool = False
    """Doubles beta, to the range (0, 2). A token can then reflect the state along its key (eigenvalue 1 - beta < 0), which parity
    needs (Grazzi et al. 2024, arXiv:2411.12537)."""

    shapes = square_heads(1, 2, 4, 8)

    def setup(self, rngs, depth):
        self.make_layers(rngs, self.expand_k, self.expand_v, negative_eigenvalues=self.negative_eigenvalues)
