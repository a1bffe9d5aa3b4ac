"""minGRU: a gated recurrent unit whose gate does not see the memory, so that all tokens can be computed at once."""

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.minimal import MinimalRNN
from seqzoo.nn import complementary


@register("min_gru")
class MinGRU(MinimalRNN):
    r"""Minimal gated recurrent unit (Feng et al. 2024, arXiv:2410.01201).

        z_t = sigmoid(W_z x_t + b_z)        c_t = g(W_h x_t + b_h)
        h_t = (1 - z_t) * h_{t-1} + z_t * c_t        y_t = W_o h_t

    with g(u) = u + 1/2 for u >= 0 and sigmoid(u) below. Use it as the smallest gated recurrence there is: a cell is an average of
    what was written to it, weighed by the gates, and reading does not depend on the token.

    Args:
      d_model: width of x and y.
      expand: cells e over d_model.
      positive: whether candidates go through g, which makes them positive: the paper's form in logarithms (appendix B), and that of
        the public code. False is the form of the paper's text, c_t = W_h x_t + b_h.
      bias: whether there are b_z and b_h, zero at the start.
      implementation: of the op `seqzoo.kernels.linear_recurrence`; None: the best for platform and shape.
    Raises:
      ValueError: expand leaves no cell.
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    The paper's appendix computes with logarithms of h; the op needs none, and the state is h itself. lucidrains' minGRU-pytorch
    has no biases, and W_o only where e is not d_model. Here W_o is always there; that, and initial weights uniform within
    1 / sqrt(fan_in), are our choice.
    """

    GATES = 1

    def make_gates(self, make) -> None:
        self.gate = make()

    def gates(self, x):
        update, keep = complementary(self.gate(x))
        return keep, update * self.candidates(x)
