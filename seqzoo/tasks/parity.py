"""Parity: whether the ones so far are odd in number, the smallest task that needs a state to be tracked."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from seqzoo.tasks.base import BatchSpec, Slice, Task, register


@register("parity")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Task):
    """Bits, uniform and independent; the target of a token is the parity of all bits up to it.

        tokens   1  0  1  1  0        targets  1  1  0  1  1

    Trained on rows of one length, with every prefix scored, or the last token alone; evaluated on the last token of rows of other
    lengths, because a model that forgets or that counts up to a bound is right on short ones. A linear recurrence whose transitions
    have positive eigenvalues cannot do it at all lengths, one with an eigenvalue of -1 can (Grazzi et al. 2024, arXiv:2411.12537).
    What a batch holds is a pure function of (seed, length, step); training and evaluation examples come from different keys.

    Args:
      length: tokens of a training example.
      eval_length: of the evaluation slices, one or several.
      prefixes: whether a training example scores every token; else its last one.
      batch_size, eval_batch_size: examples in a batch; None: as in training.
      eval_examples: examples of each evaluation slice; rows that fill up its last batch weigh 0.
      seed: in [0, 2**31).
    Raises:
      ValueError: a setting outside its range, by name, with the value found and the one wanted.
    """

    length: int = 40
    eval_length: int | tuple[int, ...] = (40, 256)
    prefixes: bool = True
    batch_size: int = 64
    eval_batch_size: int | None = None
    eval_examples: int = 512
    seed: int = 0

    def __post_init__(self):
        lengths = self.eval_length if isinstance(self.eval_length, tuple | list) else (self.eval_length,)  # JSON has no tuples
        object.__setattr__(self, "eval_length", tuple(lengths))
        sizes = {"length": self.length, "batch_size": self.batch_size, "eval_examples": self.eval_examples}
        sizes |= {"eval_batch_size": self.batch_size if self.eval_batch_size is None else self.eval_batch_size}
        for name, value in [*sizes.items(), *(("eval_length", length) for length in self.eval_length)]:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"parity: {name}={value!r}, wanted a whole number of at least 1")
        if not self.eval_length or len(set(self.eval_length)) < len(self.eval_length):
            raise ValueError(f"parity: eval_length={self.eval_length!r}, wanted at least one length, and each once")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ValueError(f"parity: seed={self.seed!r}, wanted a whole number in [0, 2**31)")

    @property
    def vocab_size(self) -> int:
        """0 and 1."""
        return 2

    @property
    def max_length(self) -> int:
        """The longest example, in training or evaluation."""
        return max(self.length, *self.eval_length)

    def spec(self, step: int) -> BatchSpec:
        """The spec of training step `step`: always the same."""
        return BatchSpec("train", 0, self.batch_size, self.length)

    def batch(self, spec: BatchSpec, index: Array) -> dict[str, Array]:
        """The batch of `spec` at `index`, a training step or an evaluation batch's number (int32 scalar, may be traced).

        Returns:
          "tokens" and "targets" [b, t] int32; "weights" [b, t] float32, 1 where a token is scored, else 0.
        """
        training = spec.split == "train"
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 0 if training else 1), spec.length)
        tokens = jax.random.randint(jax.random.fold_in(key, index), (spec.batch, spec.length), 0, 2, jnp.int32)
        scored = jnp.zeros(tokens.shape, bool).at[:, 0 if training and self.prefixes else -1 :].set(True)
        if not training:
            scored &= (index * spec.batch + jnp.arange(spec.batch) < self.eval_examples)[:, None]
        return {"tokens": tokens, "targets": jnp.cumsum(tokens, axis=1) % 2, "weights": scored.astype(jnp.float32)}

    def slices(self) -> tuple[Slice, ...]:
        """The evaluation sets, "length=256" and so on."""
        size = self.eval_batch_size or self.batch_size
        return tuple(
            Slice(f"length={n}", BatchSpec("eval", i, size, n), -(-self.eval_examples // size), 0.5, {"length": n})
            for i, n in enumerate(self.eval_length)
        )
