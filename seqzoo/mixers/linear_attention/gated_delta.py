"""Gated DeltaNet: the delta rule on a memory that also forgets as a whole."""

import jax
import jax.numpy as jnp

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.delta import DeltaMemory
from seqzoo.nn import Linear
from seqzoo.nn.step_decay import StepDecay


class GatedDeltaMemory(DeltaMemory):
    """Mamba-2's decay before the rule, a swish gate behind the norm."""

    def make_gates(self, **settings):
        d_model, heads, _, v = self.sizes
        self.decay_in = Linear(d_model, heads, **settings)
        self.decay = StepDecay(heads, low=0.01, param_dtype=settings["param_dtype"], rngs=settings["rngs"])
        self.r = Linear(d_model, heads * v, **settings)

    def log_decay(self, x):
        return self.decay(self.decay_in(x))

    def gate(self, x, y):
        return jax.nn.silu(self.r(x)) * y

    def flops(self, batch, length) -> int:
        d_model, heads, _, v = self.sizes
        return super().flops(batch, length) + batch * length * 2 * d_model * heads * (v + 1)


@register("gated_deltanet")
class GatedDeltaNet(GatedDeltaMemory):
    r"""Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464).

        S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T        S~ = exp(g_t) S_{t-1}        g_t = -A softplus(W_a x_t + b)
        y_t = W_o [silu(W_r x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_t = sigmoid(W_b x_t)
        q, k, v = silu(conv(W x)), q and k over their lengths

    Use it for recall from a small state: it overwrites single facts and forgets whole ones.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / key_heads, d_model expand_v / heads].
      key_heads: number of keys and of queries, a divisor of heads: each serves heads / key_heads memories that follow one another,
        as in Qwen3-Next and Qwen3.5; None: as many as heads.
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      conv_size: taps of the convolutions of q, k and v.
      negative_eigenvalues: twice the beta, in (0, 2) (Grazzi et al. 2024, arXiv:2411.12537).
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths, or key_heads not heads; conv_size < 1.
    Cost: time O(t d^2); state 4 d^2 expand_k expand_v / key_heads bytes and 3 (conv_size - 1) inputs per row, independent of t.
    A is uniform in [0.01, 16] at the start: the authors' [0, 16] can draw a decay that never learns.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        key_heads=None,
        expand_k=0.75,
        expand_v=1.5,
        conv_size=4,
        negative_eigenvalues=False,
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        super().__init__(
            d_model,
            heads=heads,
            key_heads=key_heads,
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
