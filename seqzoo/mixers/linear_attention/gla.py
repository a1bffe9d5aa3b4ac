"""Gated linear attention: a matrix memory with a data-dependent forget gate per key channel."""

import jax.numpy as jnp

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.gated_memory import SMALL_XAVIER, GatedMemory, log_gate, positive_temperature
from seqzoo.nn import Linear


@register("gla")
class GatedLinearAttention(GatedMemory):
    r"""Gated linear attention (Yang et al. 2023, arXiv:2312.06635).

        S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T        alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/tau)
        y_t = W_o [swish(W_r x_t) * rmsnorm(scale q_t^T S_t)]

    Use it when decoding memory must stay constant and recall matters less than with softmax attention.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      gate_rank: inner width of the low-rank gate W_2 W_1.
      gate_temperature: tau > 0; larger forgets more slowly at the start.
      scale: of the queries; None is k^-0.5.
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; gate_temperature <= 0.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / heads bytes per row, independent of t.
    The paper's code scales k by (d / heads)^-0.5 and has a layer norm without a learned scale; fla scales q by k^-0.5 and has an
    RMS norm with one. The defaults here are fla's, with which the released checkpoints run.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=0.5,
        expand_v=1.0,
        gate_rank=16,
        gate_temperature=16.0,
        scale=None,
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        self.gate_rank, self.gate_temperature = gate_rank, positive_temperature(gate_temperature)
        super().__init__(
            d_model,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            scale=scale,
            qk_init=SMALL_XAVIER,
            eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def make_decay(self, **settings):
        d_model, heads, k, _ = self.sizes
        self.gate_down = Linear(d_model, self.gate_rank, axes=("embed", None), init=SMALL_XAVIER, **settings)
        self.gate_up = Linear(self.gate_rank, heads * k, axes=(None, "heads"), bias=True, init=SMALL_XAVIER, **settings)

    def log_decay(self, x):
        return self.split(log_gate(self.gate_up(self.gate_down(x)), self.gate_temperature))

    def flops(self, batch, length) -> int:
        d_model, heads, k, _ = self.sizes
        return super().flops(batch, length) + 2 * batch * length * self.gate_rank * (d_model + heads * k)
