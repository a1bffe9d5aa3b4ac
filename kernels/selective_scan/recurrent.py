"""Recurrent form: one token at a time, in place. No [b, t, n, d] exists.

States are laid out [b, n, d]: the channels are the last axis, so every operation vectorises. Forward keeps the state before every
16th token (a checkpoint). Backward takes these blocks of 16 tokens from the last to the first: it recomputes the states and decays
of a block from its checkpoint, then walks back through its tokens with the gradient of the state, as the recurrent form of
`linear_attention`. Cost: O(b t d n) time in t steps (backward 2 t); memory b t d n / 16 for the checkpoints.

Names: g [b, t, d] is the dt of the decay (inf forgets everything), u [b, t, d] the input dt x, A [n, d]; the state h and its
gradient r are [b, n, d].
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common import xla_cpu
from seqzoo.kernels.common.first_order import first_order
from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma

CHECKPOINT_INTERVAL = 16  # tokens between saved states: 1/16 of all states is saved, and those of one block stay in a CPU's cache


def decay(g: Array, A: Array) -> Array:
    """exp(g A) [b, n, d] for g [b, d]; exactly 0 where g is inf."""
    return jnp.exp(g[:, None] * A[None])


def decayed(g: Array, a: Array, h: Array) -> Array:
    """a * h [b, n, d] for a = decay(g, A); exactly 0 where g is inf, whatever h is."""
    return a * jnp.where(jnp.isinf(g)[:, None], jnp.zeros_like(h), h)


def outer_product(n: Array, d: Array) -> Array:
    """[b, n], [b, d] -> [b, n, d]."""
    return n[:, :, None] * d[:, None]


def contract(formula: str, x: Array, y: Array) -> Array:
    """An einsum over channels or states in full precision."""
    return jnp.einsum(formula, x, y, precision=lax.Precision.HIGHEST)


def forward(g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array, Array]:
    """Computes (y [b, t, d], last state [b, n, d], checkpoints [b, t / 16, n, d]: the state before each block)."""
    length = g.shape[1]

    def token(t, carry):
        h, y = carry
        h = decayed(get_step(g, t), decay(get_step(g, t), A), h) + outer_product(get_step(B, t), get_step(u, t))
        return h, set_step(y, contract("bnd,bn->bd", h, get_step(C, t)), t)

    def block(i, carry):
        h, y, checkpoints = carry
        h, y = lax.fori_loop(i * CHECKPOINT_INTERVAL, _block_end(i, length), token, (h, y))
        return h, y, set_step(checkpoints, h, i + 1)

    checkpoints = zeros_like_vma(initial, (initial.shape[0], count_blocks(length) + 1, *initial.shape[1:]))
    carry = (initial, zeros_like_vma(u), set_step(checkpoints, initial, 0))
    last, y, checkpoints = lax.fori_loop(0, count_blocks(length), block, carry)
    return first_order("selective_scan", (y, last, checkpoints[:, :-1]))


def backward(g: Array, u: Array, A: Array, B: Array, C: Array, checkpoints: Array, dy: Array, dlast: Array) -> tuple[Array, ...]:
    """Computes the gradients (dg, du, dA [n, d], dB, dC, dinitial [b, n, d]).

    With r_t the gradient of h_t and e_t = exp(g_t A) h_{t-1} r_t:

        dg = sum_n A e    du = sum_n r B    dA = sum_bt g e    dB = sum_d r u    dC = sum_d h dy    r_{t-1} += exp(g_t A) r_t
    """
    length = g.shape[1]
    ones = jnp.ones_like(B, shape=(B.shape[0], B.shape[2]))

    def recompute(t, carry):
        h, decays, states = carry
        a = decay(get_step(g, t), A)
        after = decayed(get_step(g, t), a, h) + outer_product(get_step(B, t), get_step(u, t))
        return (
            after,
            lax.dynamic_update_index_in_dim(decays, a, t % CHECKPOINT_INTERVAL, 0),
            lax.dynamic_update_index_in_dim(states, after, t % CHECKPOINT_INTERVAL + 1, 0),
        )

    def block(i, carry):
        i = count_blocks(length) - 1 - i
        r, dA, *gradients, decays, states = carry
        first, end = i * CHECKPOINT_INTERVAL, _block_end(i, length)
        h = get_step(checkpoints, i)
        states = lax.dynamic_update_index_in_dim(states, h, 0, 0)
        _, decays, states = lax.fori_loop(first, end, recompute, (h, decays, states))

        def walk_back(j, carry):
            r, dA_block, dg, du, dB, dC = carry
            t = end - 1 - (j - first)
            g_t, u_t, B_t, C_t, dy_t = (get_step(x, t) for x in (g, u, B, C, dy))
            a, h, after = (
                lax.dynamic_index_in_dim(x, slot, 0, keepdims=False)
                for x, slot in (
                    (decays, t % CHECKPOINT_INTERVAL),
                    (states, t % CHECKPOINT_INTERVAL),
                    (states, t % CHECKPOINT_INTERVAL + 1),
                )
            )
            r = r + outer_product(C_t, dy_t)
            dC = set_step(dC, contract("bnd,bd->bn", after, dy_t), t)
            dB = set_step(dB, contract("bnd,bd->bn", r, u_t), t)
            du = set_step(du, contract("bnd,bn->bd", r, B_t), t)
            r = decayed(g_t, a, r)
            e = r * jnp.where(jnp.isinf(g_t)[:, None], jnp.zeros_like(h), h)
            dg = set_step(dg, xla_cpu.sum_in_loop(e * A[None], ones), t)
            # Where g is inf, e is exactly 0, and so is g e in the limit.
            return r, dA_block + e * jnp.where(jnp.isinf(g_t), 0, g_t)[:, None], dg, du, dB, dC

        r, dA_block, *gradients = lax.fori_loop(first, end, walk_back, (r, zeros_like_vma(dA), *gradients))
        return r, dA + dA_block, *gradients, decays, states  # summed block by block: rounding grows with sqrt(t / 16)

    decays, states = (zeros_like_vma(dlast, (CHECKPOINT_INTERVAL + more, *dlast.shape)) for more in (0, 1))
    carry = (dlast, zeros_like_vma(dlast), *(zeros_like_vma(x) for x in (g, u, B, C)), decays, states)
    dinitial, dA, dg, du, dB, dC, *_ = lax.fori_loop(0, count_blocks(length), block, carry)
    return first_order("selective_scan", (dg, du, jnp.sum(dA, axis=0), dB, dC, dinitial))


def state_transition(g: Array, u: Array, A: Array, B: Array) -> tuple[Array, Array]:
    """Transition (decay, added), both [b, n, d], of any state over all tokens: last state = decay * initial + added."""
    after = lambda t, h: decayed(get_step(g, t), decay(get_step(g, t), A), h)
    step = lambda t, h: after(t, h) + outer_product(get_step(B, t), get_step(u, t))
    return decay(jnp.sum(g, axis=1), A), lax.fori_loop(0, g.shape[1], step, _zero_state(g, A))


def gradient_transition(g: Array, A: Array, C: Array, dy: Array) -> tuple[Array, Array]:
    """The same of gradients: that of the initial state = decay * that of the last state + added."""
    last = g.shape[1] - 1
    before = lambda t, r: decayed(get_step(g, t), decay(get_step(g, t), A), r)
    step = lambda i, r: before(last - i, r + outer_product(get_step(C, last - i), get_step(dy, last - i)))
    return decay(jnp.sum(g, axis=1), A), lax.fori_loop(0, g.shape[1], step, _zero_state(g, A))


def _zero_state(g: Array, A: Array) -> Array:
    return zeros_like_vma(g, (g.shape[0], *A.shape))


def count_blocks(length: int) -> int:
    """Number of blocks of 16 tokens that hold `length` tokens."""
    return -(-length // CHECKPOINT_INTERVAL)


def _block_end(i: Array, length: int) -> Array:
    """Index of the token after block i."""
    end = (i + 1) * CHECKPOINT_INTERVAL
    return end if length % CHECKPOINT_INTERVAL == 0 else jnp.minimum(end, length)
