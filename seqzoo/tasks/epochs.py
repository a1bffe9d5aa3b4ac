"""Order of examples: the epochs of fixed-size data, and the segment of each step among several.

Everything is a pure function of (seed, step), for any step at once: an epoch's order is a keyed bijection evaluated only at the
places a batch needs, so resuming needs no iterator state and a batch costs nothing that grows with the data.
"""

import dataclasses
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

ROUNDS = 8  # of the Feistel network; 4 make a pseudorandom permutation of large domains (Luby & Rackoff 1988), small ones need more
WORD = 2**32 - 1


def hashed(*words: Any) -> Any:
    """A 32-bit hash of integers in [0, 2**32): Python ints, uint32 scalars (traced or not) and arrays of one shape, in any mixture.

    Python ints and NumPy's uint32 arrays are hashed on the host and give such; the numbers are the same.

    Each word is mixed in by x ^= x >> 16; x *= 0x21f0aaad; x ^= x >> 15; x *= 0x735a2d97; x ^= x >> 15 (C. Wellons,
    hash-prospector).
    """
    if not all(isinstance(word, int | np.ndarray) for word in words):
        words = tuple(jnp.asarray(word, jnp.uint32) for word in words)
    x = 0
    for word in words:
        x = _wrapped(x + word + 0x1E3779B9)
        x = x ^ (x >> 16)
        x = _wrapped(x * 0x21F0AAAD)
        x = x ^ (x >> 15)
        x = _wrapped(x * 0x735A2D97)
        x = x ^ (x >> 15)
    return x


def _wrapped(x):
    return x & WORD if isinstance(x, int) else x


def bijection(index: Any, size: int, key: Any) -> Any:
    """A pseudorandom permutation of {0, ..., size - 1} chosen by `key`, evaluated at `index`.

    A Feistel network permutes the next power of two, (l, r) -> (r, l xor f(r)), with halves of unequal width if necessary. An index
    that lands outside [0, size) is permuted again until it is inside, which keeps the map a bijection (Black & Rogaway 2002).

    Args:
      index: in [0, size); a Python int (computed on the host) or a uint32 array (on device, traced or not) with equal results.
      size: 1 <= size <= 2**31.
      key: from `hashed`: a Python int, or on device also a uint32 scalar.
    Returns:
      As `index`.
    Cost: fewer than two permutations on average, independent of size.
    """
    bits = (size - 1).bit_length()
    low = bits // 2
    masks = ((1 << low) - 1, (1 << (bits - low)) - 1)

    def permute(x):
        left, right = x >> low, x & masks[0]
        for step in range(ROUNDS):
            if step % 2 == 0:
                left = left ^ (hashed(key, step, right) & masks[1])
            else:
                right = right ^ (hashed(key, step, left) & masks[0])
        return (left << low) | right

    index = permute(index)
    if isinstance(index, int):
        while index >= size:
            index = permute(index)
        return index
    return lax.while_loop(lambda x: jnp.any(x >= size), lambda x: jnp.where(x >= size, permute(x), x), index)


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Fixed-size segments: an epoch visits every full batch of every segment exactly once, in an order keyed by (seed, epoch).

    Batches never mix segments. Each segment's own order is keyed by (seed, epoch, segment) too; the examples after its last full
    batch are skipped, different ones in each epoch.

    Args:
      sizes: examples of each segment, each at least `batch`.
      batch: examples in a batch.
      seed: in [0, 2**31).
    """

    sizes: tuple[int, ...]
    batch: int
    seed: int

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Running totals of the segments' batches; the last is the length of an epoch in steps."""
        return tuple(accumulate(size // self.batch for size in self.sizes))

    def segment(self, step: int) -> int:
        """The segment of `step` (host Python)."""
        return bisect_right(self.ends, self._number(step // self.ends[-1], step % self.ends[-1]))

    def examples(self, segment: int, step: Array) -> Array:
        """[batch] int32: the examples of `segment` that make the batch at `step`, an int32 scalar that may be traced.

        A step that is another segment's turn gives some batch of this one.
        """
        step = jnp.asarray(step, jnp.uint32)
        epoch = step // self.ends[-1]
        batches = self.sizes[segment] // self.batch
        number = (self._number(epoch, step % self.ends[-1]) - (self.ends[segment] - batches)) % batches
        rows = number * self.batch + jnp.arange(self.batch, dtype=jnp.uint32)
        return bijection(rows, self.sizes[segment], hashed(self.seed, epoch, 1 + segment)).astype(jnp.int32)

    def _number(self, epoch, place):
        """The batch, counted through all segments, that stands at `place` of `epoch`."""
        return bijection(place, self.ends[-1], hashed(self.seed, epoch, 0))


@dataclasses.dataclass(frozen=True)
class Endless:
    """Segments without end: turns in proportion to `weights`, as even as can be.

    The turn at step s is where frac(u + s * golden ratio) falls among the cumulative weights, u from the seed: every stretch of n
    steps gives each segment its fraction within O(log n) turns.

    Args:
      weights: of each segment, positive.
      seed: in [0, 2**31).
    """

    weights: tuple[float, ...]
    seed: int

    def segment(self, step: int) -> int:
        """The segment of `step` (host Python)."""
        ends = tuple(accumulate(self.weights))
        place = ((hashed(self.seed) << 32) + step * 0x9E3779B97F4A7C15) % 2**64  # 2**64 / golden ratio
        return min(bisect_right(ends, place / 2**64 * ends[-1]), len(ends) - 1)
