"""minLSTM: a long short-term memory whose gates do not depend on the hidden state, and add up to one."""

from seqzoo.mixers.base import register
from seqzoo.mixers.recurrent.base import MinimalMixer
from seqzoo.nn import normalised_gates


@register("min_lstm")
class MinLSTM(MinimalMixer):
    r"""Minimal long short-term memory (Feng et al. 2024, arXiv:2410.01201).

        f_t = sigmoid(W_f x_t + b_f)        i_t = sigmoid(W_i x_t + b_i)        c_t = g(W_h x_t + b_h)
        h_t = f_t / (f_t + i_t) * h_{t-1} + i_t / (f_t + i_t) * c_t        y_t = W_o h_t

    with g as in minGRU. Use it for separate decisions on forgetting and writing; divided by their sum, the gates keep h in the
    range of the candidates for rows of any length.

    Raises:
      ValueError: expand leaves no hidden unit.
    Cost: time O(t d e); state 4 e bytes per row, independent of t.
    The differences between paper, public code and this code are those of minGRU.
    """

    gate_count = 2

    def make_gates(self, make):
        self.forget_gate, self.input_gate = make(), make()

    def decay_and_input(self, x):
        decay, weight = normalised_gates(self.forget_gate(x), self.input_gate(x))
        return decay, weight * self.candidates(x)
