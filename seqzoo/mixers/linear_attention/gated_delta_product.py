"""Gated DeltaProduct: several steps of the delta rule per token."""

import jax.numpy as jnp

from seqzoo.mixers.base import register
from seqzoo.mixers.linear_attention.delta import EPS
from seqzoo.mixers.linear_attention.gated_delta import GatedDeltaMemory
from seqzoo.nn import Linear
from seqzoo.nn.delta import delta_product, unit


@register("gated_deltaproduct")
class GatedDeltaProduct(GatedDeltaMemory):
    r"""Gated DeltaProduct (Siems et al. 2025, arXiv:2502.10297).

        S_t: S~ = exp(g_t) S_{t-1}, then S~ <- S~ + beta_j k_j (v_j - S~^T k_j)^T for j = 1, ..., n
        y_t = W_o [silu(W_r x_t) * rmsnorm(k^-0.5 S_t^T q_t)]        beta_j = 2 sigmoid(W_bj x_t)
        g_t = -A softplus(W_a x_t + b)
        q, k_j, v_j = silu(conv(W x)), q and k_j over their lengths

    Use it where a state must be tracked: a token can rotate what is stored, which a product of two reflections is.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values of a step, over d_model.
      steps: n, at least 1.
      conv_size: taps of the convolutions of q, k and v.
      negative_eigenvalues: whether beta has the 2; without it nothing is mirrored.
      forget: whether there is a decay; else g_t is 0.
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths; conv_size < 1; steps < 1.
    Cost: time O(n t d^2); state 4 d^2 expand_k expand_v / heads bytes and (2 n + 1) (conv_size - 1) inputs per row.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=0.75,
        expand_v=1.5,
        steps=2,
        conv_size=4,
        negative_eigenvalues=True,
        forget=True,
        norm_eps=1e-5,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        if steps < 1:
            raise ValueError(f"steps={steps}: wanted at least 1")
        self.forget = forget
        super().__init__(
            d_model,
            heads=heads,
            expand_k=expand_k,
            expand_v=expand_v,
            steps=steps,
            conv_size=conv_size,
            negative_eigenvalues=negative_eigenvalues,
            norm_eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def make_gates(self, **settings):
        if self.forget:
            return super().make_gates(**settings)
        d_model, heads, _, v = self.sizes
        self.r = Linear(d_model, heads * v, **settings)

    def log_decay(self, x):
        return super().log_decay(x) if self.forget else None

    def remember(self, q, k, v, strength, log_decay, **settings):
        by_step = lambda x: x.reshape(*x.shape[:2], self.steps, self.sizes[1], -1)
        return delta_product(unit(q, EPS), unit(by_step(k), EPS), by_step(v), by_step(strength)[..., 0], log_decay, **settings)

    def flops(self, batch, length) -> int:
        d_model, heads = self.sizes[:2]
        return super().flops(batch, length) - (0 if self.forget else batch * length * 2 * d_model * heads)
