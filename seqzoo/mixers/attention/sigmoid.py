"""Sigmoid attention: the weight of a pair depends on that pair alone, without normalisation."""

import math

from seqzoo.mixers.attention.base import AttentionMixer, Norm
from seqzoo.mixers.base import register
from seqzoo.specs import Length


@register("sigmoid")
class Sigmoid(AttentionMixer):
    r"""Causal sigmoid attention (Ramapuram et al. 2024, arXiv:2409.04431).

        o_i = sum_{j <= i} sigmoid(q_i . k_j / sqrt(head_dim) - log n) v_j        y = W_o [o of all heads]

    Use it as a drop-in for softmax attention whose sum over tokens has no order and no running maximum.

    Raises:
      ValueError: sizes that do not divide; joint_qk_norm without a qk_norm; `init_state` without max_length and without a window.
    Cost: that of softmax attention.
    """

    length: Length = 1024
    """n, the training length, whose logarithm makes a row's weights sum to about 1 at the start. A constant: it does not
    depend on the length of the row, also in decoding (as in the released code). 1 means no bias."""
    qk_norm: Norm | None = "layer"
    """Norm of the queries and keys of each head; the released code trains with "layer"."""

    scores = "sigmoid"

    def score_bias(self):
        return -math.log(self.length)
