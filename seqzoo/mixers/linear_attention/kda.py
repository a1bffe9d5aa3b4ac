"""Kimi delta attention: the delta rule on a memory whose key channels forget one by one."""

import jax
import jax.numpy as jnp

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.delta import DeltaMemory
from seqzoo.nn import LowRank
from seqzoo.nn.step_decay import StepDecay


@register("kda")
class KimiDeltaAttention(DeltaMemory):
    r"""Kimi delta attention (Kimi Team 2025, arXiv:2510.26692).

        S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T        S~ = Diag(exp g_t) S_{t-1}        g_t = -A softplus(W_2 W_1 x_t + b)
        y_t = W_o [sigmoid(W_4 W_3 x_t + c) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)
        q, k, v = silu(conv(W x)), q and k over their lengths

    Use it where Gated DeltaNet would be used and facts differ in how long they matter.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      gate_rank: inner width of W_2 W_1 and of W_4 W_3; None: v, as in the released models.
      gate_bias: whether there is a c: not in Kimi-Linear's layers, but in flash-linear-attention's.
      conv_size: taps of the convolutions of q, k and v.
      negative_eigenvalues: twice the beta, in (0, 2) (Grazzi et al. 2024, arXiv:2411.12537).
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; conv_size < 1.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=1.0,
        gate_rank=None,
        gate_bias=False,
        conv_size=4,
        negative_eigenvalues=False,
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        self.gate_rank, self.gate_bias = gate_rank, gate_bias
        super().__init__(
            d_model,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            conv_size=conv_size,
            negative_eigenvalues=negative_eigenvalues,
            norm_eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def make_gates(self, **settings):
        d_model, heads, k, v = self.sizes
        rank = v if self.gate_rank is None else self.gate_rank
        self.decay_in = LowRank(d_model, rank, heads * k, **settings)
        self.r = LowRank(d_model, rank, heads * v, bias=jnp.zeros(heads * v) if self.gate_bias else None, **settings)
        self.decay = StepDecay(heads, k, low=1.0, param_dtype=settings["param_dtype"], rngs=settings["rngs"])

    def log_decay(self, x):
        return self.decay(self.decay_in(x))

    def gate(self, x, y):
        return jax.nn.sigmoid(self.r(x)).astype(y.dtype) * y

    def flops(self, batch, length) -> int:
        low_rank = self.decay_in.flops_per_token + self.r.flops_per_token
        return super().flops(batch, length) + batch * length * low_rank
