"""Multi-query associative recall (MQAR): how many key-value pairs can a model hold and find again?"""

from functools import cached_property
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from pydantic import model_validator

from seqzoo.specs import Length, Positive, Seed
from seqzoo.tasks.base import SPLITS, BatchSpec, EvalSet, Task, register
from seqzoo.tasks.epochs import Endless, Epochs, hashed
from seqzoo.tasks.sampling import integers, uniform_without_replacement, weighted_without_replacement

Cell = TypeVar("Cell")
Column = Cell | tuple[Cell, ...]
"""One value for each training segment or evaluation set, or a single one for all."""


class Shape(NamedTuple):
    """One kind of example."""

    length: int
    pairs: int


@register("mqar")
class MQAR(Task):
    """Multi-query associative recall (Arora et al., 2023, "Zoology", arXiv:2312.04927).

    An example with K pairs in L tokens: the block `k1 v1 ... kK vK`, then slots of two tokens, K of which hold one key each (every
    key is queried exactly once) followed by a filler; the other slots are two fillers. At a query the target is that key's value;
    nothing else is scored, and the answer is never written into the input.

        V = 16, K = 2:   tokens   2  8  4  7  0  0  4  0  0  0  0  0  2  0
                         targets  .  .  .  .  .  .  7  .  .  .  .  .  8  .

    Keys are drawn from {1, ..., V/2 - 1}, values from {V/2, ..., V - 1}, both uniformly without replacement; 0 is the filler. Slots
    are drawn without replacement with weights i^(power - 1), i = 1, 2, ...: pair j gets the j-th draw. A batch is a pure
    function of (seed, length, pairs, step); training, validation and test examples come from different keys.

    **Several kinds of examples**: `length`, `pairs`, `examples` and `weights` are columns of a table with one row per training
    segment; a single value fills its column. Batches never mix segments. The mixture of Arora et al., 2024 (arXiv:2402.18668):

        mqar(length=(64, 128, 256, 256, 256), pairs=(4, 8, 16, 32, 64), examples=(100000, 20000, 20000, 20000, 20000), noise=True,
             eval_length=(64, 64, 64, 128, 256, 512, 1024), eval_pairs=(4, 8, 16, 32, 64, 128, 256))

    Raises:
      SpecError: a setting outside its range, by name, with the value found and the one wanted.

    The chance level of every evaluation set is 1 / (V/2): guessing among all possible values. (Guessing among the values of the
    example reaches 1 / pairs, without knowing which value belongs to which key.)

    Cost: O(K^2 + L) time and memory per example, independent of V; no tables are kept.
    """

    traced_seed = True

    vocab_size: Length = 8192
    """V, even, larger than every length."""
    length: Column[Length] = 64
    """L, tokens of a training example, even."""
    pairs: Column[Length] = 8
    """K, pairs of a training example; 2 K (passes + 1) <= L and K <= V/2 - 1."""
    examples: Column[Length] | None = None
    """Training examples of each segment, each visited once per epoch; None: new examples at every step."""
    weights: Column[Positive] | None = None
    """Weight of each segment if `examples` is None. With `examples`, each segment is weighted by its number of examples."""
    eval_length: Column[Length] | None = None
    """L of the evaluation sets, a column like `length`; None: that of training, which must then be a single value."""
    eval_pairs: Column[Length] | None = None
    """K of the evaluation sets, a column like `pairs`; None: the (length, pairs) of training."""
    batch_size: Length = 64
    """Training examples in a batch."""
    eval_batch_size: Length | None = None
    """Evaluation examples in a batch; None: as `batch_size`."""
    eval_examples: Length = 1024
    """Examples of each evaluation set, and of each test set; rows that fill up its last batch have weight 0."""
    power: Positive = 0.01
    """Exponent a of the power law of query slots: near 0 most queries come early (weights 1/i), at 1 they are uniform."""
    noise: bool = False
    """Replaces every filler by an id drawn uniformly from {0, ..., V - 1}, which may be a key or a value of the example."""
    passes: Length = 1
    """Number of times that the block of pairs is shown (Arora et al. 2024, arXiv:2407.05483, "just read twice")."""
    seed: Seed = 0
    """Seed of all examples."""

    @model_validator(mode="after")
    def _settings_fit_each_other(self):
        if self.vocab_size % 2:
            raise ValueError(f"vocab_size={self.vocab_size}, wanted an even number: half the ids are values")
        for prefix, shapes in (("", self._train), ("eval_", self._evaluation)):
            for shape in shapes:
                self._check(prefix, shape)
            if len(set(shapes)) < len(shapes):
                found = ", ".join(map(str, map(tuple, shapes)))
                raise ValueError(f"the (length, pairs) of {prefix}length and {prefix}pairs are {found}; wanted each once")
        self._order  # noqa: B018 - checks examples and weights
        return self

    @property
    def max_length(self) -> int:
        """The longest example, in training or evaluation."""
        return max(shape.length for shape in self._train + self._evaluation)

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step` (host Python)."""
        segment = self._order.segment(step) if len(self._train) > 1 else 0
        return BatchSpec("train", segment, self.batch_size, self._train[segment].length)

    def batch(self, spec: BatchSpec, index: Array) -> dict[str, Array]:
        """The batch of `spec` at `index`, a training step or an evaluation batch's number (int32 scalar, may be traced).

        Returns:
          "tokens" [b, t] int32; "targets" [b, t] int32, 0 where nothing is scored; "weights" [b, t] float32, 1 at queries, else 0.
        """
        training = spec.split == "train"
        shape = (self._train if training else self._evaluation)[spec.segment]
        # The length and pairs themselves, so that a set's examples do not depend on which other sets there are.
        key = jax.random.fold_in(jax.random.key(self.seed), hashed(SPLITS.index(spec.split), *shape))
        rows = jnp.arange(spec.batch, dtype=jnp.int32)
        if training and isinstance(self._order, Endless):
            key = jax.random.fold_in(key, index)  # two folds: step * batch would overflow in long runs
        elif training and isinstance(self._order, Epochs):
            rows = self._order.examples(spec.segment, index)
        else:
            rows = index * spec.batch + rows
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        tokens, targets = jax.vmap(lambda key: self._example(key, shape))(keys)
        scored = targets > 0
        if not training:
            scored = scored & (rows < self.eval_examples)[:, None]
        return {"tokens": tokens, "targets": targets, "weights": scored.astype(jnp.float32)}

    def eval_sets(self) -> tuple[EvalSet, ...]:
        """The evaluation sets: "pairs=8", or "length=128,pairs=8" where lengths vary."""
        return self._sets("eval")

    def test_sets(self) -> tuple[EvalSet, ...]:
        """The test sets: as many other examples as in the evaluation sets, under the same names."""
        return self._sets("test")

    def _sets(self, split: str) -> tuple[EvalSet, ...]:
        size = self.eval_batch_size or self.batch_size
        varying = len({shape.length for shape in self._evaluation}) > 1
        return tuple(
            EvalSet(
                name=f"length={shape.length},pairs={shape.pairs}" if varying else f"pairs={shape.pairs}",
                spec=BatchSpec(split, segment, size, shape.length),
                batches=-(-self.eval_examples // size),
                chance=2 / self.vocab_size,
                settings=shape._asdict(),
            )
            for segment, shape in enumerate(self._evaluation)
        )

    def notes(self) -> tuple[str, ...]:
        """The examples that an epoch skips."""
        if isinstance(self._order, Endless):
            return ()
        return tuple(
            f"mqar length={shape.length}, pairs={shape.pairs}: {size % self.batch_size} of {size} examples do not fill a batch of "
            f"{self.batch_size} and are skipped, different ones in each epoch"
            for shape, size in zip(self._train, self._order.sizes, strict=True)
            if size % self.batch_size
        )

    def _example(self, key: Array, shape: Shape) -> tuple[Array, Array]:
        """One example: tokens and targets [t] int32, target 0 where nothing is scored (0 is never a value)."""
        half, (length, pairs) = self.vocab_size // 2, shape
        slots = length // 2 - pairs * self.passes
        sizes = (pairs, pairs, slots, length if self.noise else 0)
        for_keys, for_values, for_slots, for_noise = jnp.split(jax.random.bits(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
        keys = 1 + uniform_without_replacement(for_keys, half - 1)
        values = half + uniform_without_replacement(for_values, half)
        block = jnp.tile(jnp.stack([keys, values], axis=1).reshape(-1), self.passes)
        log_weights = (self.power - 1) * jnp.log(jnp.arange(1, slots + 1, dtype=jnp.float32))
        queries = block.size + 2 * weighted_without_replacement(for_slots, log_weights, pairs)
        tokens = jnp.zeros(length, jnp.int32).at[: block.size].set(block).at[queries].set(keys, unique_indices=True)
        targets = jnp.zeros(length, jnp.int32).at[queries].set(values, unique_indices=True)
        if self.noise:
            tokens = jnp.where(tokens == 0, integers(for_noise, self.vocab_size), tokens)
        return tokens, targets

    @cached_property
    def _train(self) -> tuple[Shape, ...]:
        return _shapes(length=self.length, pairs=self.pairs)

    @cached_property
    def _evaluation(self) -> tuple[Shape, ...]:
        if self.eval_length is None and self.eval_pairs is None:
            return self._train
        lengths = {shape.length for shape in self._train}
        if self.eval_length is None and len(lengths) > 1:
            raise ValueError(f"eval_pairs is given and training has several lengths, {sorted(lengths)}; wanted eval_length too")
        if self.eval_pairs is None:
            raise ValueError(f"eval_length={self.eval_length!r} is given without eval_pairs; wanted both")
        length = next(iter(lengths)) if self.eval_length is None else self.eval_length
        return _shapes(eval_length=length, eval_pairs=self.eval_pairs)

    @cached_property
    def _order(self) -> Epochs | Endless:
        """The order of the training segments, and for fixed-size data that of the examples."""
        count = len(self._train)
        if self.examples is None:
            return Endless(_filled("weights", 1.0 if self.weights is None else self.weights, count), self.seed)
        if self.weights is not None:
            raise ValueError(f"weights={self.weights!r} with examples={self.examples!r}: wanted one of them, not both")
        sizes = _filled("examples", self.examples, count)
        for size in sizes:
            if size < self.batch_size:
                raise ValueError(f"examples={self.examples!r}, wanted at least one batch each: batch_size={self.batch_size}")
        return Epochs(sizes, self.batch_size, self.seed)

    def _check(self, prefix: str, shape: Shape):
        """The generator's preconditions, as published."""
        length, pairs = shape
        if length % 2:
            raise ValueError(f"{prefix}length={length}, wanted an even number")
        if length >= self.vocab_size:
            raise ValueError(f"vocab_size={self.vocab_size}, wanted more than {prefix}length={length}")
        if pairs > self.vocab_size // 2 - 1:
            raise ValueError(f"{prefix}pairs={pairs}, wanted at most vocab_size / 2 - 1 = {self.vocab_size // 2 - 1} distinct keys")
        if (needed := 2 * pairs * (self.passes + 1)) > length:
            raise ValueError(
                f"{prefix}pairs={pairs} with passes={self.passes} needs {needed} tokens; wanted a {prefix}length of at "
                f"least that, found {length}"
            )


def _filled(name: str, value, rows: int) -> tuple:
    """A column of `rows` values: a single value fills it."""
    column = value if isinstance(value, tuple) else (value,) * rows
    if len(column) != rows:
        raise ValueError(f"{name}={value!r} has {len(column)} values, wanted one, or {rows} as the other columns have")
    return column


def _shapes(**columns) -> tuple[Shape, ...]:
    """The (length, pairs) rows of two columns."""
    rows = max([1, *(len(column) for column in columns.values() if isinstance(column, tuple))])
    lengths, pairs = (_filled(name, column, rows) for name, column in columns.items())
    return tuple(map(Shape, lengths, pairs))
