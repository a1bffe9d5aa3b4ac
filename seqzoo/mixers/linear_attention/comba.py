"""Comba: a gated delta rule that takes back only a part of what a key finds, and reads with corrected queries."""

import jax
import jax.numpy as jnp
from flax import nnx

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.delta import EPS
from seqzoo.mixers.linear_attention.gated_delta import GatedDeltaMemory
from seqzoo.nn.delta import delta_rule, unit
from seqzoo.specs import choice

OUTPUT_GATES = {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


@register("comba")
class Comba(GatedDeltaMemory):
    r"""Comba (Hu et al. 2025, arXiv:2506.02475), on Gated DeltaNet's layer.

        S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - f S_{t-1}^T k_t)^T        f = sigmoid(c), per head
        y_t = W_o [gate(W_r x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)        g_t = -A softplus(W_a x_t + b)
        k, v = silu(conv(W x))        q = silu(conv(W x)) - D k, D per head        then q and k over their lengths

    Use it where Gated DeltaNet would be used: feedback comes from the memory before its decay, in a share that each head learns.
    With feedback=False and correction=0.0 it is gradient descent with weight decay on |S^T k - v|^2: the linear memory of Titans
    without momentum (Behrouz et al. 2025, arXiv:2501.00663), of step beta / 2 and decay 1 - exp(g).

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      conv_size: taps of the convolutions of q, k and v.
      feedback: whether f is learned; else it is 1. flash-linear-attention's kernel takes its own f out again.
      correction: D at the start; its authors suggest 1, and 0.02 for small models.
      output_gate: "sigmoid" as in flash-linear-attention, or "silu".
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; conv_size < 1; output_gate is neither of the two.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=0.75,
        expand_v=1.5,
        conv_size=4,
        feedback=True,
        correction=1.0,
        output_gate="sigmoid",
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        super().__init__(
            d_model,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            conv_size=conv_size,
            norm_eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        per_head = lambda start: nnx.Param(jnp.full((heads,), start, param_dtype), axes=("heads",), decay=False)
        self.activation = OUTPUT_GATES[choice("output_gate", output_gate, OUTPUT_GATES)]
        self.feedback, self.correction = per_head(1.0) if feedback else None, per_head(correction)

    def gate(self, x, y):
        return self.activation(self.r(x)) * y

    def remember(self, q, k, v, strength, log_decay, **settings):
        per_head = lambda p: p.astype(k.dtype)[None, None, :, None]
        q, k = unit(q - per_head(self.correction[...]) * k, EPS), unit(k, EPS)
        taken = k if self.feedback is None else k * per_head(jax.nn.sigmoid(self.feedback[...]))
        return delta_rule(q, k, v, strength, log_decay, undecayed=taken, **settings)
