"""mLSTM: a matrix-valued state with an exponential input gate, so that a later token can outweigh everything stored before it."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jax.nn.initializers import normal, zeros

from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.base import LinearAttentionMixer, LinearAttentionState, empty_state
from seqzoo.mixers.linear_attention.linear import append_ones
from seqzoo.mixers.shapes import square_heads, wide_heads
from seqzoo.nn import LayerNorm, SoftCappedGate, exponential_gates, scaled
from seqzoo.specs import Expansion, Number, Positive

EPS = 1e-6  # NX-AI's mlstm_kernels, added to the denominator, and the 7B model's norm


class MLSTMState(NamedTuple):
    """Recurrent state divided by exp(maximum), with the normaliser as one more value column.

    With a sigmoid input gate it is a `LinearAttentionState`.
    """

    matrix: Array  # [b, h, k, v + 1]
    maximum: Array  # [b, h] logarithm of the largest weight so far, -inf before the first token
    segment: Array  # [b] int32


@register("mlstm")
class MLSTM(LinearAttentionMixer):
    r"""mLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517), in the block of xLSTM 7B (Beck et al. 2025, arXiv:2503.13427).

        C_t = f_t C_{t-1} + i_t k_t v_t^T        n_t = f_t n_{t-1} + i_t k_t        f_t = sigmoid(f~_t)        i_t = exp(i~_t)
        h_t = C_t^T q_t / max(|n_t^T q_t|, 1)        y_t = W_o [sigmoid(W_g x_t) * layernorm(h_t), per head]

    with f~ = cap(W_f x + b_f), i~ = cap(W_i x + b_i), cap(z) = c tanh(z / c), and q over sqrt(k). Use it where a token must be able
    to overwrite what is stored. C and n are stored divided by exp(m_t), m_t = max(m_{t-1} + log f_t, i~_t), which cancels in
    the quotient; the denominator becomes max(|n_t^T q_t|, exp(-m_t)).

    Raises:
      ValueError: heads does not divide the widths; normalised=False with exponential gates.
    Cost: time O(t d^2); state 4 (d expand_k (d expand_v / heads + 1) + heads) bytes per row, independent of t.
    Initial values are those of the released block: q, k, v normal with variance 2 / 5d, W_o with a deviation of
    2 / (L sqrt(d)) in L layers, gates zero except b_i and b_f, which runs from 3 to 6 over heads. Both codes add 1e-6
    to the denominator divided by exp(m): the one place where m does not cancel. Released code starts from m = 0, here an empty
    state has m = -inf; h differs by less than 1e-6 of itself. The first paper's block, with convolutions and block-diagonal
    projections, is not this one.
    """

    expand_k: Expansion = 0.5
    """Width of all keys together, as a multiple of d_model; a head has k = d_model expand_k / heads."""
    expand_v: Expansion = 1.0
    """Width of all values together, as a multiple of d_model; a head has v = d_model expand_v / heads."""
    input_gate: Literal["exponential", "sigmoid"] = "exponential"
    """i_t; "sigmoid" is sigmoid(i~_t), which needs no m (mLSTMsig, Beck et al. 2025, arXiv:2503.14376)."""
    normalised: bool = True
    """Divides by n. If False, h_t = C_t^T q_t, for sigmoid input gates only. NX-AI's kernels divide by default."""
    input_bias: Number = -10.0
    """b_i at initialisation. The 7B model's -10 makes states fill slowly; for small models on short rows, 0 may be better."""
    gate_cap: Positive | None = 15.0
    """c; None: no cap."""

    gate_activation = staticmethod(jax.nn.sigmoid)
    shapes = (*square_heads(1), wide_heads(1, 1, 2), *square_heads(2, 4, 8))

    def setup(self, rngs, depth):
        self.exponential = self.input_gate == "exponential"
        if self.exponential and not self.normalised:
            raise ValueError("normalised=False: an exponential gate needs the normaliser, set input_gate='sigmoid'")
        small, wang = (2 / (5 * self.d_model)) ** 0.5, 2 / ((1 if depth is None else depth[1]) * self.d_model**0.5)
        inits = {"qk_init": normal(small), "v_init": normal(small), "gate_init": zeros, "out_init": normal(wang)}
        norm = partial(LayerNorm, eps=EPS, groups=self.heads, bias=False)
        self.make_layers(rngs, self.expand_k, self.expand_v, joint_norm=norm, **inits)
        biases = jnp.full((self.heads,), self.input_bias), jnp.linspace(3, 6, self.heads)
        kwargs = self.factory_kwargs(rngs)
        self.input, self.forget = (SoftCappedGate(self.d_model, bias, self.gate_cap, **kwargs) for bias in biases)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        x = self.clear_padding(x, segment_ids)
        q, k, v = self.project_qkv(x)
        log_decay, weight, maximum, initial = jax.nn.log_sigmoid(self.forget(x)), self.input(x), None, state
        if self.exponential:
            first = {} if state is None else {"maximum": state.maximum, "segment": state.segment}
            log_decay, weight, _, maximum = exponential_gates(weight, log_decay, segment_ids=segment_ids, **first)
            if state is not None:
                initial = state._replace(matrix=scaled(state.matrix, state.maximum[..., None, None]))
        weight = jnp.exp(weight) if self.exponential else jax.nn.sigmoid(weight)
        k, v = (k * weight[..., None]).astype(k.dtype), append_ones(v) if self.normalised else v
        o, matrix = self.attend(q, k, v, log_decay, initial, segment_ids, weight.dtype if self.normalised else None)
        if self.normalised:
            one, eps = (jnp.ones_like(weight), EPS) if maximum is None else (jnp.exp(-stop_gradient(maximum)), scaled(EPS, maximum))
            o = o[..., :-1] / (jnp.maximum(jnp.abs(o[..., -1]), one) + eps)[..., None]
        leaves = {"matrix": matrix}
        if maximum is not None:
            last = maximum[:, -1]
            leaves = {"matrix": scaled(matrix, -last[..., None, None]), "maximum": last}
        return self.output(x, o), next_state(state, segment_ids, **leaves)

    def init_state(self, batch, max_length=None, dtype=None) -> MLSTMState | LinearAttentionState:
        """An empty state, with the maximum at -inf; `max_length` has no influence on its size."""
        empty = empty_state(batch, self.heads, self.key_dim, self.value_dim + self.normalised, self.cache_dtype(dtype))
        if not self.exponential:
            return empty
        return MLSTMState(empty.matrix, jnp.full((batch, self.heads), -jnp.inf, empty.matrix.dtype), empty.segment)

    def flops(self, batch, length):
        k, v = self.key_dim, self.value_dim
        return batch * length * self.heads * (2 * self.d_model * (2 * k + 3 * v + 2) + 4 * k * (v + self.normalised))
