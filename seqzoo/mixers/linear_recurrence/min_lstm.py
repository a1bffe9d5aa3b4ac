"""minLSTM: a long short-term memory whose gates do not see the memory, and add up to one."""

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_recurrence.minimal import MinimalRNN
from seqzoo.nn import normalised_gates


@register("min_lstm")
class MinLSTM(MinimalRNN):
    r"""Minimal long short-term memory (Feng et al. 2024, arXiv:2410.01201).

        f_t = sigmoid(W_f x_t + b_f)        i_t = sigmoid(W_i x_t + b_i)        c_t = g(W_h x_t + b_h)
        h_t = f_t / (f_t + i_t) * h_{t-1} + i_t / (f_t + i_t) * c_t        y_t = W_o h_t

    with g as in minGRU. Use it where keeping and writing should be two decisions; divided by their sum they leave h in the range of
    what was written, however long the row.

    Args:
      d_model: width of x and y.
      expand, positive, bias, implementation: as for minGRU.
    Raises:
      ValueError: expand leaves no cell.
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    What is the paper's, what the public code's and what our choice, is as for minGRU.
    """

    GATES = 2

    def make_gates(self, make) -> None:
        self.forget, self.input = make(), make()

    def gates(self, x):
        keep, write = normalised_gates(self.forget(x), self.input(x))
        return keep, write * self.candidates(x)
