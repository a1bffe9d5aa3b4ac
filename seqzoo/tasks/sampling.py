"""Sampling without replacement from random bits, for one example at a time (batch with `jax.vmap`).

Bits, not keys: drawing all bits of an example at once compiles three times as fast as one draw for each part.
"""

import jax.numpy as jnp
from jax import Array, lax


def uniform_without_replacement(bits: Array, population: int) -> Array:
    """Distinct members of {0, ..., population - 1}, one per word of `bits`, every ordered choice equally likely.

    The first swaps of Fisher and Yates' shuffle a[0..population-1] = identity: at step j swap a[j] with a[r_j],
    r_j uniform in [j, population). Only the swaps are stored, so no array has the size of the population.

    Args:
      bits: [count] uint32, random; count <= population.
      population: size of the population. r_j is a remainder, so that its probabilities differ by population / 2^32 of themselves.
    Returns:
      [count] int32, in the order drawn.
    Cost: O(count^2) time, O(count) memory, independent of the population (4095 choose 64: a sixth of a sort, on CPU).
    """
    order = jnp.arange(bits.size, dtype=jnp.int32)
    places = order + integers(bits, population - order)

    def swap(j, carry):
        drawn, moved = carry  # moved[i]: what swap i put into places[i]

        def content(place):
            last = jnp.max(jnp.where((places == place) & (order < j), order, -1))
            return jnp.where(last < 0, place, moved[jnp.maximum(last, 0)])

        return drawn.at[j].set(content(places[j])), moved.at[j].set(content(j))

    return lax.fori_loop(0, bits.size, swap, (order, order))[0]


def weighted_without_replacement(bits: Array, log_weights: Array, count: int) -> Array:
    """`count` distinct indices, drawn one after another with probabilities renormalised over those left.

    Gumbel top-k: the order of log w_i + Gumbel_i, largest first, has exactly that distribution (Vieira 2014; Kool et al., 2019,
    arXiv:1903.06059).

    Args:
      bits: [n] uint32, random; 23 bits of each are used.
      log_weights: [n] float32, up to a constant; n >= count.
      count: how many to draw.
    Returns:
      [count] int32, in the order drawn.
    """
    inside = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23  # in (0, 1), never at an end
    return lax.top_k(log_weights - jnp.log(-jnp.log(inside)), count)[1].astype(jnp.int32)


def integers(bits: Array, size: Array | int) -> Array:
    """Random integers in [0, size), int32, of uint32 words of random bits."""
    return (bits % jnp.asarray(size, jnp.uint32)).astype(jnp.int32)
