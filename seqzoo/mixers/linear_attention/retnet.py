"""RetNet's retention: a matrix memory that every head forgets at its own fixed pace, with rotary positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.gated_memory import SMALL_XAVIER, GatedMemory
from seqzoo.nn import check_rotary, rotate


class RetNetState(NamedTuple):
    """The memory, and how many tokens of the current document it has seen."""

    memory: Array  # [b, h, k, v]
    position: Array  # [b] int32
    segment: Array  # [b] int32


@register("retnet")
class RetNet(GatedMemory):
    r"""Multi-scale retention (Sun et al. 2023, arXiv:2307.08621).

        S_t = gamma S_{t-1} + rot(k_t, t) v_t^T        gamma = 1 - 2^(-5 - i) in head i = 0, 1, ...
        y_t = W_o [swish(W_r x_t) * rmsnorm(k^-0.5 rot(q_t, t)^T S_t)]

    rot turns pairs of channels by angles that grow with the position, so a score depends on the distance, and fades with it as
    gamma^distance. Use it as the baseline of gated memories: what it forgets does not depend on the data.

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads], k even.
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      rope_base: wavelengths run from 2 pi to 2 pi rope_base; None: no rotation.
      norm_eps: what the norm behind the memory adds to the mean square.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
    Raises:
      ValueError: heads does not divide the widths, or leaves an odd k with rotary positions.
    Cost: time O(t d^2 expand_v); state 4 d^2 expand_k expand_v / heads + 4 bytes per row, independent of t.
    The authors' code turns neighbouring channels by base^(-i / (k/2 - 1)), has no learned scale in the norm, and divides scores by
    sums that the norm takes out again; flash-linear-attention, which has the released models, turns halves by base^(-2i/k), has a
    scale and divides by nothing, and is followed here. Initial weights (xavier of gain 2^-2.5, 1 for W_o) and the norm's 1e-6 are
    the authors'; heads=4, where that library takes 8, is the zoo's.
    """

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=1.0,
        expand_v=2.0,
        rope_base=10000.0,
        norm_eps=1e-6,
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
            qk_init=SMALL_XAVIER,
            v_init=SMALL_XAVIER,
            r_init=SMALL_XAVIER,
            out_init=jax.nn.initializers.glorot_uniform(),
            eps=norm_eps,
            implementation=implementation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        check_rotary(self.sizes[2], rope_base, "heads or expand_k")
        self.rope_base = rope_base

    def log_decay(self, x):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(self.sizes[1])))), wide)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        batch, length, _ = x.shape
        q, k, v = self.project(x)
        segment, count = (None, jnp.zeros((batch,), jnp.int32)) if state is None else (state.segment, state.position)
        counted, count = segments.positions(segment_ids, segment, count, length)
        if self.rope_base is not None:
            positions = counted if positions is None else positions
            q, k = rotate(q, positions, self.rope_base), rotate(k, positions, self.rope_base)
        o, memory = self.attend(q, k, v, self.log_decay(x), state, segment_ids)
        return self.finish(x, o), next_state(state, segment_ids, memory=memory, position=count)

    def init_state(self, batch, max_length=None, dtype=None) -> RetNetState:
        """An empty memory; `max_length` has no bearing on its size."""
        memory, segment = super().init_state(batch, dtype=dtype)
        return RetNetState(memory, jnp.zeros((batch,), jnp.int32), segment)
