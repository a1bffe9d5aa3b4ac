"""Parity of the bits so far: 1 if the number of ones is odd. The smallest task that needs state tracking."""

import jax
import jax.numpy as jnp
from jax import Array
from pydantic import field_validator

from seqzoo.specs import Length, Seed
from seqzoo.tasks.base import SPLITS, BatchSpec, EvalSet, Task, register


@register("parity")
class Parity(Task):
    """Bits, uniform and independent; the target of a token is the parity of all bits up to it.

        tokens   1  0  1  1  0        targets  1  1  0  1  1

    Trained on rows of one length, with every prefix scored, or the last token alone; evaluated on the last token of rows of other
    lengths, because a model that forgets, or that counts up to a bound, is correct on short rows. A linear recurrence whose
    transitions have only positive eigenvalues cannot compute parity at all lengths; one with an eigenvalue of -1 can (Grazzi et al.
    2024, arXiv:2411.12537).
    A batch is a pure function of (seed, length, step); training, validation and test examples come from different keys.

    Raises:
      SpecError: a setting outside its range, by name, with the value found and the one wanted.
    """

    traced_seed = True

    length: Length = 40
    """Tokens of a training example."""
    eval_length: Length | tuple[Length, ...] = (40, 256)
    """Tokens of the evaluation sets, one or several."""
    prefixes: bool = True
    """Scores every token of a training example. If False, only the last one."""
    batch_size: Length = 64
    """Training examples in a batch."""
    eval_batch_size: Length | None = None
    """Evaluation examples in a batch; None: as in training."""
    eval_examples: Length = 512
    """Examples of each evaluation set, and of each test set; rows that fill up its last batch have weight 0."""
    seed: Seed = 0
    """Seed of all examples."""

    @field_validator("eval_length")
    @classmethod
    def _each_once(cls, value):
        if isinstance(value, tuple) and not 0 < len(set(value)) == len(value):
            raise ValueError("wanted at least one length, and each once")
        return value

    @property
    def eval_lengths(self) -> tuple[int, ...]:
        """`eval_length` as a tuple."""
        return self.eval_length if isinstance(self.eval_length, tuple) else (self.eval_length,)

    @property
    def vocab_size(self) -> int:
        """0 and 1."""
        return 2

    @property
    def max_length(self) -> int:
        """The longest example, in training or evaluation."""
        return max(self.length, *self.eval_lengths)

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step`: always the same."""
        return BatchSpec("train", 0, self.batch_size, self.length)

    def batch(self, spec: BatchSpec, index: Array) -> dict[str, Array]:
        """The batch of `spec` at `index`, a training step or an evaluation batch's number (int32 scalar, may be traced).

        Returns:
          "tokens" and "targets" [b, t] int32; "weights" [b, t] float32, 1 where a token is scored, else 0.
        """
        training = spec.split == "train"
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), SPLITS.index(spec.split)), spec.length)
        tokens = jax.random.randint(jax.random.fold_in(key, index), (spec.batch, spec.length), 0, 2, jnp.int32)
        scored = jnp.zeros(tokens.shape, bool).at[:, 0 if training and self.prefixes else -1 :].set(True)
        if not training:
            scored &= (index * spec.batch + jnp.arange(spec.batch) < self.eval_examples)[:, None]
        return {"tokens": tokens, "targets": jnp.cumsum(tokens, axis=1) % 2, "weights": scored.astype(jnp.float32)}

    def eval_sets(self) -> tuple[EvalSet, ...]:
        """The evaluation sets, "length=256" and so on."""
        return self._sets("eval")

    def test_sets(self) -> tuple[EvalSet, ...]:
        """The test sets: as many other examples as in the evaluation sets, under the same names."""
        return self._sets("test")

    def _sets(self, split: str) -> tuple[EvalSet, ...]:
        size = self.eval_batch_size or self.batch_size
        return tuple(
            EvalSet(f"length={n}", BatchSpec(split, i, size, n), -(-self.eval_examples // size), 0.5, {"length": n})
            for i, n in enumerate(self.eval_lengths)
        )
