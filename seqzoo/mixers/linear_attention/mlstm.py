"""mLSTM: a matrix memory whose input gate is an exponential, so that a later token can outweigh all that was stored before it."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import normal, zeros

from seqzoo.mixers.base import next_state, register
from seqzoo.mixers.linear_attention.gated_memory import GatedMemory, MemoryState, empty_memory
from seqzoo.mixers.linear_attention.linear import with_ones
from seqzoo.nn import CappedGate, LayerNorm, exponential_gates
from seqzoo.specs import choice

EPS = 1e-6  # NX-AI's mlstm_kernels, behind the denominator, and the 7B model's norm
INPUT_GATES = ("exponential", "sigmoid")


class MLSTMState(NamedTuple):
    """The memory over exp(maximum), with the normaliser as one more value column. With a sigmoid gate it is a `MemoryState`."""

    memory: Array  # [b, h, k, v + 1]
    maximum: Array  # [b, h] logarithm of the largest weight so far, -inf before the first token
    segment: Array  # [b] int32


@register("mlstm")
class MLSTM(GatedMemory):
    r"""mLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517), in the block of xLSTM 7B (Beck et al. 2025, arXiv:2503.13427).

        C_t = f_t C_{t-1} + i_t k_t v_t^T        n_t = f_t n_{t-1} + i_t k_t        f_t = sigmoid(f~_t)        i_t = exp(i~_t)
        h_t = C_t^T q_t / max(|n_t^T q_t|, 1)        y_t = W_o [sigmoid(W_r x_t) * layernorm(h_t), per head]

    with f~ = cap(W_f x + b_f), i~ = cap(W_i x + b_i), cap(z) = c tanh(z / c), and q over sqrt(k). Use it where a token must be able
    to overwrite what is stored. C and n are held over exp(m_t), m_t = max(m_{t-1} + log f_t, i~_t), which cancels above and below:
    the denominator becomes max(|n_t^T q_t|, exp(-m_t)).

    Args:
      d_model: width of x and y.
      heads: number of memories; each is [k, v] = [d_model expand_k / heads, d_model expand_v / heads].
      expand_k, expand_v: widths of all keys and of all values, over d_model.
      input_gate: "exponential", or "sigmoid": i_t = sigmoid(i~_t), which needs no m (mLSTMsig, Beck et al. 2025, arXiv:2503.14376).
      normalised: False leaves h_t = C_t^T q_t, without n; for sigmoid input gates alone. NX-AI's kernels divide by default.
      input_bias: b_i at the start. The 7B model's -10 makes memories fill slowly; small models on short rows may want 0.
      gate_cap: c > 0; None: no cap.
      implementation: of the op `seqzoo.kernels.linear_attention`; None: the best for platform and shape.
      depth: (index, count) of the layer; None is (0, 1). W_o starts with a deviation of 2 / (count sqrt(d_model)).
    Raises:
      ValueError: heads does not divide the widths; unknown input_gate; normalised=False with exponential gates; gate_cap <= 0.
    Cost: time O(t d^2); state 4 (d expand_k (d expand_v / heads + 1) + heads) bytes per row, independent of t.
    Initial values are those of the released block: q, k, v normal with variance 2 / 5d, gates zero but for b_i and b_f, which runs
    from 3 to 6 over heads. There, and here, 1e-6 is added to the denominator that is over exp(m): the one thing in which m does not
    cancel. Released code starts from m = 0, here an empty memory has m = -inf; h differs by less than 1e-6 of itself.
    The first paper's block, with convolutions and block-diagonal projections, is not this one.
    """

    output_gate = staticmethod(jax.nn.sigmoid)

    def __init__(
        self,
        d_model,
        *,
        heads=4,
        expand_k=0.5,
        expand_v=1.0,
        input_gate="exponential",
        normalised=True,
        input_bias=-10.0,
        gate_cap=15.0,
        implementation=None,
        depth=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        self.normalised, self.exponential = normalised, choice("input_gate", input_gate, INPUT_GATES) == "exponential"
        if self.exponential and not normalised:
            raise ValueError("normalised=False: an exponential gate needs the normaliser, set input_gate='sigmoid'")
        small, wang = (2 / (5 * d_model)) ** 0.5, 2 / ((1 if depth is None else depth[1]) * d_model**0.5)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = {"heads": heads, "expand_k": expand_k, "expand_v": expand_v}
        inits = {"qk_init": normal(small), "v_init": normal(small), "r_init": zeros, "out_init": normal(wang)}
        norm = partial(LayerNorm, eps=EPS, groups=heads, bias=False)
        super().__init__(d_model, **widths, **inits, joint_norm=norm, implementation=implementation, **settings)
        biases = jnp.full((heads,), input_bias), jnp.linspace(3, 6, heads)
        self.input, self.forget = (CappedGate(d_model, bias, gate_cap, **settings) for bias in biases)

    def __call__(self, x, *, state=None, segment_ids=None, positions=None, key=None):
        q, k, v = self.project(x)
        log_decay, weight, maximum = jax.nn.log_sigmoid(self.forget(x)), self.input(x), None
        if self.exponential:
            first = {} if state is None else {"maximum": state.maximum, "segment": state.segment}
            log_decay, weight, _, maximum = exponential_gates(weight, log_decay, segment_ids=segment_ids, **first)
        weight = jnp.exp(weight) if self.exponential else jax.nn.sigmoid(weight)
        k, v = (k * weight[..., None]).astype(k.dtype), with_ones(v) if self.normalised else v
        o, memory = self.attend(q, k, v, log_decay, state, segment_ids)
        if self.normalised:
            one = jnp.ones_like(weight) if maximum is None else jnp.exp(-maximum)
            o = o[..., :-1] / (jnp.maximum(jnp.abs(o[..., -1]), one) + EPS)[..., None]
        leaves = {"memory": memory} if maximum is None else {"memory": memory, "maximum": maximum[:, -1]}
        return self.finish(x, o), next_state(state, segment_ids, **leaves)

    def init_state(self, batch, max_length=None, dtype=None) -> MLSTMState | MemoryState:
        """An empty memory, with the maximum at -inf; `max_length` has no bearing on its size."""
        _, heads, k, v = self.sizes
        empty = empty_memory(batch, heads, k, v + self.normalised, self.dtype if dtype is None else dtype)
        lowest = jnp.full((batch, heads), -jnp.inf, empty.memory.dtype)
        return MLSTMState(empty.memory, lowest, empty.segment) if self.exponential else empty

    def flops(self, batch, length) -> int:
        d_model, heads, k, v = self.sizes
        return batch * length * heads * (2 * d_model * (2 * k + 3 * v + 2) + 4 * k * (v + self.normalised))
