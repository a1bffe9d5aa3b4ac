"""Softmax attention: every token chooses among all earlier ones; the memory is everything read so far."""

import jax.numpy as jnp

from seqzoo.mixers.attention.pairwise import PairwiseAttention
from seqzoo.mixers.base import register


@register("softmax")
class Softmax(PairwiseAttention):
    r"""Causal softmax attention (Vaswani et al. 2017, arXiv:1706.03762).

        o_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(width)) v_j        y = W_o [o of all heads]
        with an output gate: y = W_o [sigmoid(W_r x) * o of all heads]

    Use it when exact recall matters more than the memory that decoding takes.

    Args:
      d_model: width of x and y.
      heads: query heads.
      kv_heads: key and value heads, a divisor of heads (Ainslie et al. 2023, arXiv:2305.13245); None: as many as heads.
      head_dim: width of a head; None: d_model / heads.
      window: how many tokens, itself included, a token sees; None: its whole document.
      rope_theta: base of the rotary positions (Su et al. 2021, arXiv:2104.09864); None: no positions at all.
      rope_dim: how many channels of a head, the first, are rotated; None: all.
      qk_norm: None, "rms" or "layer": normalises each head's queries and keys (Dehghani et al. 2023, arXiv:2302.05442).
      joint_qk_norm: whether all heads are normalised together, each channel with a scale of its own, as in OLMo 2 (OLMo team 2025,
        arXiv:2501.00656).
      qk_norm_eps: what those norms add to the mean square.
      output_gate: whether there is a gate before the last projection, as in Qwen3-Next (Qiu et al. 2025, arXiv:2505.06708).
      bias: whether the projections have biases.
      out_bias: whether the last projection has one; None: as `bias`.
      dropout: rate on the attention weights, active when a key is given.
      implementation: of the op `seqzoo.kernels.attention`; None: the best for platform and shape.
    Raises:
      ValueError: sizes that do not divide; joint_qk_norm without a qk_norm; `init_state` without max_length and without a window.
    Cost: time O(t d^2 + t^2 d) (t window d with a window); state 2 kv_heads head_dim bytes-per-element per token of the document,
      or per token of the window.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        kv_heads=None,
        head_dim=None,
        window=None,
        rope_theta=10000.0,
        rope_dim=None,
        qk_norm=None,
        joint_qk_norm=False,
        qk_norm_eps=1e-6,
        output_gate=False,
        bias=False,
        out_bias=None,
        dropout=0.0,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            rope_theta=rope_theta,
            rope_dim=rope_dim,
            qk_norm=qk_norm,
            joint_qk_norm=joint_qk_norm,
            qk_norm_eps=qk_norm_eps,
            output_gate=output_gate,
            bias=bias,
            out_bias=out_bias,
            dropout=dropout,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def score_settings(self):
        """Softmax needs no setting beyond its name."""
        return {"scores": "softmax"}
