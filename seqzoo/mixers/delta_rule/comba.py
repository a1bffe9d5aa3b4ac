"""Comba: a gated delta rule that removes a learned fraction of the value stored under a key, and corrects queries."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.kernels.linear_attention.delta_rule import delta_rule, l2_normalise
from seqzoo.mixers.base import register
from seqzoo.mixers.delta_rule.base import EPS, GatedDeltaRuleMixer
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.specs import Expansion, Number

ACTIVATIONS = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


@register("comba")
class Comba(GatedDeltaRuleMixer):
    r"""Comba (Hu et al. 2025, arXiv:2506.02475), on Gated DeltaNet's layer.

        S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - f S_{t-1}^T k_t)^T        f = sigmoid(c), per head
        y_t = W_o [gate(W_g x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)        g_t = -A softplus(W_a x_t + b)
        k, v = silu(conv(W x))        q = silu(conv(W x)) - D k, D per head        then q / |q|, k / |k|

    Use it in place of Gated DeltaNet: feedback comes from the state before its decay, in a fraction that each head learns. With
    feedback=False and correction=0.0 it is gradient descent with weight decay on |S^T k - v|^2: the linear memory of Titans without
    momentum (Behrouz et al. 2025, arXiv:2501.00663), of step beta / 2 and decay 1 - exp(g).

    Raises:
      ValueError: heads does not divide the widths.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    expand_k: Expansion = 0.75
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.5
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    feedback: bool = True
    """Learns f. If False, f is 1, as in effect in flash-linear-attention, whose kernel cancels its own f."""
    correction: Number = 1.0
    """D at initialisation; its authors suggest 1, and 0.02 for small models."""
    output_gate: Literal["sigmoid", "silu"] = "sigmoid"
    """Activation of the output gate; flash-linear-attention has "sigmoid"."""

    shapes = (*square_heads(1), wide_heads(1, 1, 2), *square_heads(2, 4, 8))

    def setup(self, rngs, depth):
        self.make_layers(rngs, self.expand_k, self.expand_v)
        per_head = lambda start: nnx.Param(jnp.full((self.heads,), start, self.param_dtype), axes=("heads",), decay=False)
        self.feedback_logit = per_head(1.0) if self.feedback else None
        self.query_correction = per_head(self.correction)

    def gated(self, x, y):
        return ACTIVATIONS[self.output_gate](self.gate(x)) * y

    def recur(self, q, k, v, beta, log_decay, **kwargs):
        per_head = lambda p: p.astype(k.dtype)[None, None, :, None]
        q, k = l2_normalise(q - per_head(self.query_correction[...]) * k, EPS), l2_normalise(k, EPS)
        removed = k if self.feedback_logit is None else k * per_head(jax.nn.sigmoid(self.feedback_logit[...]))
        return delta_rule(q, k, v, beta, log_decay, undecayed=removed, **kwargs)
