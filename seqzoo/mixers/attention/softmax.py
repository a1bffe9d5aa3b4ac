"""Softmax attention: every token chooses among all earlier ones; the state is the KV cache of all tokens so far."""

from seqzoo.mixers.attention.base import AttentionMixer
from seqzoo.mixers.base import register


@register("softmax")
class Softmax(AttentionMixer):
    r"""Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762).

        o_i = sum_{j <= i} softmax_j(scale q_i . k_j) v_j        y = W_o [o of all heads]
        with an output gate: y = W_o [sigmoid(W_g x) * o of all heads]

    Use it when exact recall matters more than the memory that decoding takes.

    Raises:
      ValueError: sizes that do not divide; joint_qk_norm without a qk_norm; `init_state` without max_length and without a window.
    Cost: time O(t d^2 + t^2 d) (t window d with a window); state kv_heads (head_dim + value_dim) bytes-per-element per token of
      the document, or per token of the window.
    """

    scores = "softmax"
