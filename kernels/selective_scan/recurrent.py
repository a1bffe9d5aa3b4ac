"""One token after the other, in place, the state laid out [b, n, d]: the channels lie side by side, so every operation vectorises.

No [b, t, n, d] exists. Forward keeps the state before every 16th token; backward takes these blocks from the last to the first,
runs each forward again for its 16 states and decays, and walks it back with the gradient of the state. Memory O(b t d n / 16).

Names: g [b, t, d] is the dt of the decay (inf forgets), u [b, t, d] what is written (dt x), A [n, d]; the state h and its gradient
r are [b, n, d].
"""

import jax.numpy as jnp
from jax import Array, lax

from seqzoo.kernels.common.loops import get_step, set_step
from seqzoo.kernels.common.vma import zeros_like_vma

BLOCK = 16  # tokens between saved states: 1/16 of the history is kept, and one block's history stays in the cache


def decay(g: Array, A: Array) -> Array:
    """exp(g A) [b, n, d] for g [b, d]; exactly 0 where g is inf."""
    return jnp.exp(g[:, None] * A[None])


def outer(n: Array, d: Array) -> Array:
    """[b, n], [b, d] -> [b, n, d]."""
    return n[:, :, None] * d[:, None]


def contract(formula: str, x: Array, y: Array) -> Array:
    """An einsum over channels or states in full precision. As a matrix-vector product with batch b alone, even where the vector is
    all ones, it stays vectorised inside a CPU's loop; a product and a sum would go to XLA's thread pool at every token."""
    return jnp.einsum(formula, x, y, precision=lax.Precision.HIGHEST)


def forward(g: Array, u: Array, A: Array, B: Array, C: Array, initial: Array) -> tuple[Array, Array, Array]:
    """Returns (y [b, t, d], h at the end [b, n, d], the states before each block [b, t / 16, n, d])."""
    length = g.shape[1]

    def token(t, carry):
        h, y = carry
        h = decay(get_step(g, t), A) * h + outer(get_step(B, t), get_step(u, t))
        return h, set_step(y, contract("bnd,bn->bd", h, get_step(C, t)), t)

    def block(i, carry):
        h, y, saved = carry
        h, y = lax.fori_loop(i * BLOCK, _end(i, length), token, (h, y))
        return h, y, set_step(saved, h, i + 1)

    saved = zeros_like_vma(initial, (initial.shape[0], blocks(length) + 1, *initial.shape[1:]))
    last, y, saved = lax.fori_loop(0, blocks(length), block, (initial, zeros_like_vma(u), set_step(saved, initial, 0)))
    return y, last, saved[:, :-1]


def backward(g: Array, u: Array, A: Array, B: Array, C: Array, saved: Array, dy: Array, dlast: Array) -> tuple[Array, ...]:
    """Gradients (dg, du, dA [n, d], dB, dC, dinitial [b, n, d]). With r_t the gradient of h_t and e_t = exp(g_t A) h_{t-1} r_t:

    dg = sum_n A e    du = sum_n r B    dA = sum_bt g e    dB = sum_d r u    dC = sum_d h dy    r_{t-1} += exp(g_t A) r_t
    """
    length = g.shape[1]
    ones = jnp.ones_like(B, shape=(B.shape[0], B.shape[2]))

    def again(t, carry):
        h, decays, states = carry
        a = decay(get_step(g, t), A)
        after = a * h + outer(get_step(B, t), get_step(u, t))
        return (
            after,
            lax.dynamic_update_index_in_dim(decays, a, t % BLOCK, 0),
            lax.dynamic_update_index_in_dim(states, after, t % BLOCK + 1, 0),
        )

    def block(i, carry):
        i = blocks(length) - 1 - i
        r, dA, *gradients, decays, states = carry
        first, end = i * BLOCK, _end(i, length)
        h = get_step(saved, i)
        states = lax.dynamic_update_index_in_dim(states, h, 0, 0)
        _, decays, states = lax.fori_loop(first, end, again, (h, decays, states))

        def back(j, carry):
            r, dA_block, dg, du, dB, dC = carry
            t = end - 1 - (j - first)
            g_t, u_t, B_t, C_t, dy_t = (get_step(x, t) for x in (g, u, B, C, dy))
            a, h, after = (
                lax.dynamic_index_in_dim(x, slot, 0, keepdims=False)
                for x, slot in ((decays, t % BLOCK), (states, t % BLOCK), (states, t % BLOCK + 1))
            )
            r = r + outer(C_t, dy_t)
            dC = set_step(dC, contract("bnd,bd->bn", after, dy_t), t)
            dB = set_step(dB, contract("bnd,bd->bn", r, u_t), t)
            du = set_step(du, contract("bnd,bn->bd", r, B_t), t)
            r = a * r
            e = h * r
            dg = set_step(dg, contract("bnd,bn->bd", e * A[None], ones), t)
            # Where g is inf, e is exactly 0, and so is g e in the limit.
            return r, dA_block + e * jnp.where(jnp.isinf(g_t), 0, g_t)[:, None], dg, du, dB, dC

        r, dA_block, *gradients = lax.fori_loop(first, end, back, (r, zeros_like_vma(dA), *gradients))
        return r, dA + dA_block, *gradients, decays, states  # summed block by block: rounding grows with sqrt(t / 16)

    decays, states = (zeros_like_vma(dlast, (BLOCK + more, *dlast.shape)) for more in (0, 1))
    carry = (dlast, zeros_like_vma(dlast), *(zeros_like_vma(x) for x in (g, u, B, C)), decays, states)
    dinitial, dA, dg, du, dB, dC, *_ = lax.fori_loop(0, blocks(length), block, carry)
    return dg, du, jnp.sum(dA, axis=0), dB, dC, dinitial


def summary(g: Array, u: Array, A: Array, B: Array) -> tuple[Array, Array]:
    """What a row does to any h: (decay, added), both [b, n, d], with h at the end = decay h before + added. No outputs are kept."""
    step = lambda t, h: decay(get_step(g, t), A) * h + outer(get_step(B, t), get_step(u, t))
    return decay(jnp.sum(g, axis=1), A), lax.fori_loop(0, g.shape[1], step, _none(g, A))


def summary_back(g: Array, A: Array, C: Array, dy: Array) -> tuple[Array, Array]:
    """The same of gradients: (decay, added) with that of h before = decay times that of h at the end + added."""
    last = g.shape[1] - 1
    step = lambda i, r: decay(get_step(g, last - i), A) * (r + outer(get_step(C, last - i), get_step(dy, last - i)))
    return decay(jnp.sum(g, axis=1), A), lax.fori_loop(0, g.shape[1], step, _none(g, A))


def _none(g: Array, A: Array) -> Array:
    return zeros_like_vma(g, (g.shape[0], *A.shape))


def blocks(length: int) -> int:
    """How many blocks hold `length` tokens."""
    return -(-length // BLOCK)


def _end(i: Array, length: int) -> Array:
    """The token after block i."""
    return (i + 1) * BLOCK if length % BLOCK == 0 else jnp.minimum((i + 1) * BLOCK, length)
