"""minGRU: a gated recurrent unit whose gate does not depend on the hidden state, so that all tokens are computed in parallel."""

from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import MinimalMixer
from seqzoo.nn import complementary


@register("min_gru")
class MinGRU(MinimalMixer):
    r"""Minimal gated recurrent unit (Feng et al. 2024, arXiv:2410.01201).

        z_t = sigmoid(W_z x_t + b_z)        c_t = g(W_h x_t + b_h)
        h_t = (1 - z_t) * h_{t-1} + z_t * c_t        y_t = W_o h_t

    with g(u) = u + 1/2 for u >= 0 and sigmoid(u) below. Use it as the smallest gated recurrence there is: a hidden unit is an
    average of its candidates, weighted by the gates, and its output does not depend on the token.

    Raises:
      ValueError: expand leaves no hidden unit.
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    The paper's appendix computes with logarithms of h; the op needs none, and the state is h itself. lucidrains' minGRU-pytorch
    has no biases, and W_o only where e is not d_model. Here W_o is always there; that, and initial weights uniform within
    1 / sqrt(fan_in), are our choice.
    """

    gate_count = 1

    def make_gates(self, make):
        self.update_gate = make()

    def decay_and_input(self, x):
        update, decay = complementary(self.update_gate(x))
        return decay, update * self.candidates(x)
