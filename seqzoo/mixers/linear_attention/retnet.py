"""RetNet's retention: a matrix-valued state with a fixed decay per head and rotary positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.kernels.common import segments
from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.base import XAVIER_SMALL, LinearAttentionMixer
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.nn import check_rotary, rotate
from seqzoo.specs import Expansion, Positive


class RetNetState(NamedTuple):
    """Recurrent state, and the position of the next token in its document."""

    matrix: Array  # [b, h, k, v]
    position: Array  # [b] int32
    segment: Array  # [b] int32


@register("retnet")
class RetNet(LinearAttentionMixer):
    r"""Multi-scale retention (Sun et al. 2023, arXiv:2307.08621).

        S_t = gamma S_{t-1} + rot(k_t, t) v_t^T        gamma = 1 - 2^(-5 - i) in head i = 0, 1, ...
        y_t = W_o [swish(W_g x_t) * rmsnorm(k^-0.5 rot(q_t, t)^T S_t)]

    rot rotates pairs of channels by angles that grow with the position, so a score depends on the distance, and decays with it as
    gamma^distance. Use it as the baseline of gated linear attention: what it forgets does not depend on the data.

    Raises:
      ValueError: heads does not divide the widths, or leaves an odd k with rotary positions.
    Cost: time O(t d^2 expand_v); state 4 d^2 expand_k expand_v / heads + 4 bytes per row, independent of t.
    The authors' code rotates neighbouring channels by base^(-i / (k/2 - 1)), has no learned scale in the norm, and divides scores
    by sums that the norm cancels; flash-linear-attention, which has the released models, rotates halves by base^(-2i/k), has a
    scale and no division, and is followed here. Initial weights (xavier of gain 2^-2.5, 1 for W_o) and the norm's 1e-6 are the
    authors'; heads=4, where that library takes 8, is our choice.
    """

    expand_k: Expansion = 1.0
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads, an even number with
    rotary positions."""
    expand_v: Expansion = 2.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    rope_theta: Positive | None = 10000.0
    """Wavelengths run from 2 pi to 2 pi times this; None: no rotation."""
    norm_eps: Positive = 1e-6
    """Epsilon that the norm of the output adds to the mean square."""

    shapes = (*square_heads(1, step=2), wide_heads(1, 2, 4), *square_heads(2, 4, 8, step=2))  # rotary: k is even

    def setup(self, rngs, depth):
        self.make_layers(
            rngs,
            self.expand_k,
            self.expand_v,
            qk_init=XAVIER_SMALL,
            v_init=XAVIER_SMALL,
            gate_init=XAVIER_SMALL,
            out_init=jax.nn.initializers.glorot_uniform(),
            norm_eps=self.norm_eps,
        )
        check_rotary(self.key_dim, self.rope_theta, "heads or expand_k")

    def log_decay(self, x):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.asarray(np.log1p(-(2.0 ** (-5 - np.arange(self.heads)))), wide)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        batch, length, _ = x.shape
        q, k, v = self.project_qkv(x)
        segment, position = (None, jnp.zeros((batch,), jnp.int32)) if state is None else (state.segment, state.position)
        counted, position = segments.positions(segment_ids, segment, position, length)
        if self.rope_theta is not None:
            positions = counted if positions is None else positions
            q, k = rotate(q, positions, self.rope_theta), rotate(k, positions, self.rope_theta)
        o, matrix = self.attend(q, k, v, self.log_decay(x), state, segment_ids)
        return self.output(x, o), next_state(state, segment_ids, matrix=matrix, position=position)

    def init_state(self, batch, max_length=None, dtype=None) -> RetNetState:
        """An empty state; `max_length` has no influence on its size."""
        matrix, segment = super().init_state(batch, dtype=dtype)
        return RetNetState(matrix, jnp.zeros((batch,), jnp.int32), segment)
