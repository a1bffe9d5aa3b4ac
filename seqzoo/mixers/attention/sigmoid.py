"""Sigmoid attention: every pair is weighed on its own, and nothing is normalised."""

import math

import jax.numpy as jnp

from seqzoo.mixers.attention.pairwise import PairwiseAttention
from seqzoo.mixers.base import register


@register("sigmoid")
class Sigmoid(PairwiseAttention):
    r"""Causal sigmoid attention (Ramapuram et al. 2024, arXiv:2409.04431).

        o_i = sum_{j <= i} sigmoid(q_i . k_j / sqrt(width) - log n) v_j        y = W_o [o of all heads]

    Use it as a drop-in for softmax attention whose sum over tokens has no order and no running maximum.

    Args:
      d_model: width of x and y.
      length: n > 0, the training length, whose logarithm makes a row's weights sum to about 1 at the start. A constant: it is never
        read off a call's length, and stays the same in decoding (as in the released code). 1 leaves the bias out.
      heads, kv_heads, head_dim, window, rope_theta, bias, dropout, implementation: as for softmax attention.
      qk_norm: None, "rms" or "layer"; "layer" is what the released code trains with, and the default.
    Raises:
      ValueError: sizes that do not divide; length <= 0; `init_state` without max_length and without a window.
    Cost: as softmax attention's.
    """

    def __init__(
        self,
        d_model,
        *,
        length=1024,
        heads=4,
        kv_heads=None,
        head_dim=None,
        window=None,
        rope_theta=10000.0,
        qk_norm="layer",
        bias=False,
        dropout=0.0,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if length <= 0:
            raise ValueError(f"length={length}: wanted the training length, more than 0")
        super().__init__(
            d_model,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            rope_theta=rope_theta,
            qk_norm=qk_norm,
            bias=bias,
            dropout=dropout,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.length = length

    def score_settings(self):
        """The bias -log n."""
        return {"scores": "sigmoid", "bias": -math.log(self.length)}
