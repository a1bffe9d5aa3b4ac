"""`seqzoo.generate`: argument checks, prefill and decoding."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.filesize import decimal

from seqzoo.generation import decoding
from seqzoo.generation.decoding import NO_TOKEN
from seqzoo.generation.sampling import GREEDY, Sampling
from seqzoo.model import LanguageModel
from seqzoo.model.memory import bytes_on_device, device_memory


class Generated(NamedTuple):
    """The tokens that follow the prompts."""

    tokens: np.ndarray  # [b, n] int32, n = longest row; -1 after the end of a row
    lengths: np.ndarray  # [b] int32, tokens of each row, its stop id included

    def rows(self) -> list[np.ndarray]:
        """Each row's tokens, at its own length."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]] | np.ndarray | Array,
    *,
    max_new_tokens: int,
    key: Array | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int] = (),
    max_length: int | None = None,
    dtype: Any = None,
    prefill_chunk: int = 512,
    block: int = 32,
    on_token: Callable[[np.ndarray, int], None] | None = None,
) -> Generated:
    """Continues prompts with any model, hybrids included.

    Without a key, each token is the most probable one (greedy decoding; the lowest of equal ids), and settings of sampling are
    refused. With a key, it is drawn from

        p = softmax(logits / temperature)

    cut to `top_k`, then to `top_p` (`generation.sampling.candidates`). The result of a row does not depend on the other rows.

    Args:
      model: parameters are used where they are placed.
      prompts: b sequences of token ids, each of at least one, or an int array [b, t].
      max_new_tokens: largest number of new tokens per row, at least 1.
      key: a PRNG key, of which row i uses fold_in(key, i); or an array [b] of keys, one for each row.
      temperature: above 0, None: 1. Without a key: None or 0.
      top_k: in [1, vocab_size]; None: no bound.
      top_p: in (0, 1]; None: no bound.
      stop: ids that end a row; the row contains its stop id.
      max_length: size of growing caches in tokens, prompt and answer together; None: the longest prompt + max_new_tokens. Calls
        with the same max_length share one compilation.
      dtype: of cached activations, as in `init_state`; None: the model's.
      prefill_chunk: tokens of a prompt per call; shorter prompts take one call, padded to a power of 2.
      block: tokens that the device generates between two calls of `on_token`, with one check for ended rows. 1 streams every
        token; the tokens do not depend on it.
      on_token: called as on_token(tokens [b] int32, step) for each step from 0, in order; -1 after the end of a row.
    Returns:
      Generated: tokens [b, n], lengths [b].
    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, a setting outside its range, or more tokens than max_length or the
        model's learned positions. FloatingPointError: the logits after a prompt are NaN.
    Cost: one call of the model per token, which reads the allocated caches once. Memory: state and one chunk, constant for
      recurrent mixers; if the caches have more bytes than the blocks' parameters, also a copy of the parameters. One compilation
      for each b, chunk, block, top_k, number of stop ids, and for growing caches max_length; with large caches its time grows with
      depth.
    """
    vocab_size = model.vocab_size
    rows = [_token_ids(f"prompts[{i}]", prompt, vocab_size) for i, prompt in enumerate(prompts)]
    if not rows:
        raise ValueError("prompts is empty, wanted at least one prompt")
    for i, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"prompts[{i}] is empty, wanted at least one token, such as the id that separates documents")
    for name, value in {"max_new_tokens": max_new_tokens, "prefill_chunk": prefill_chunk, "block": block}.items():
        _check_int(name, value)
    stops = _token_ids("stop", stop, vocab_size)
    sampling = _sampling(key, temperature, top_k, top_p, len(rows), vocab_size)
    longest = max(map(len, rows))
    max_length = _cache_length(model, longest, max_new_tokens, max_length)
    _check_memory(model, len(rows), max_length, dtype)

    chunk = min(prefill_chunk, 1 << (longest - 1).bit_length())
    progress = decoding.prefill(model, rows, chunk=chunk, max_length=max_length, dtype=dtype)
    if np.isnan(progress.logits).any():
        raise FloatingPointError("the logits after a prompt are NaN: parameters are not finite, or activations overflow")
    taken: list[np.ndarray] = []
    for tokens in decoding.decode_blocks(model, progress, sampling, stops, max_new_tokens=max_new_tokens, top_k=top_k, block=block):
        steps = [column for column in tokens.T if np.any(column != NO_TOKEN)]
        for step, column in enumerate(steps, start=len(taken)):
            if on_token is not None:
                on_token(column, step)
        taken += steps
    tokens = np.stack(taken, axis=1)
    return Generated(tokens, np.count_nonzero(tokens != NO_TOKEN, axis=1).astype(np.int32))


def _token_ids(name: str, values: Any, vocab_size: int) -> np.ndarray:
    """Token ids as an int32 array [n]."""
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"{name} is {values!r:.60}, wanted a sequence of token ids")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise ValueError(f"{name} has the token id {outside[0]}, wanted 0 to {vocab_size - 1}, the ids of the vocabulary")
    return ids.astype(np.int32)


def _check_int(name: str, value: Any, most: float = math.inf) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= most:
        wanted = "of at least 1" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name}={value!r}, wanted a whole number {wanted}")


def _sampling(key, temperature, top_k, top_p, batch: int, vocab_size: int) -> Sampling:
    """Settings of sampling, with a key for each row."""
    if key is None:
        given = {"temperature": temperature or None, "top_k": top_k, "top_p": top_p}
        if ignored := [f"{name}={value!r}" for name, value in given.items() if value is not None]:
            raise ValueError(
                f"{', '.join(ignored)} without a key, which means the most probable token: "
                f"wanted key=jax.random.key(seed) to draw, or no setting of sampling"
            )
        return GREEDY
    if not isinstance(key, Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        found = f"{key.dtype}{key.shape}" if isinstance(key, Array) else repr(key)
        raise ValueError(f"key is {found}, wanted jax.random.key(seed), or an array of {batch} such keys, one for each prompt")
    temperature = 1.0 if temperature is None else temperature
    if temperature == 0:
        raise ValueError("temperature=0 with a key, which would not be used: wanted key=None, or a temperature above 0")
    if not np.finfo(np.float32).tiny <= temperature < math.inf:
        raise ValueError(f"temperature={temperature!r}, wanted a finite number above 0")
    if top_k is not None:
        _check_int("top_k", top_k, vocab_size)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r}, wanted a number in (0, 1]")
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    return Sampling(keys, jnp.float32(temperature), None if top_p in (None, 1) else jnp.float32(top_p))


def _cache_length(model: LanguageModel, longest: int, max_new_tokens: int, max_length: int | None) -> int:
    """Tokens that caches must hold; ValueError if max_length or the learned positions are fewer."""
    needed = longest + max_new_tokens
    table = model.position_embedding
    bounds = {"max_length": max_length, "the model's learned_positions": None if table is None else table.shape[0]}
    for name, bound in bounds.items():
        if bound is not None and bound < needed:
            raise ValueError(
                f"{longest} tokens of prompt and max_new_tokens={max_new_tokens} are {needed}, more than {name}={bound}: "
                f"wanted a shorter prompt, a smaller max_new_tokens{' or a larger max_length' if name == 'max_length' else ''}"
            )
    return needed if max_length is None else max_length


def _check_memory(model: LanguageModel, batch: int, max_length: int, dtype: Any) -> None:
    """Raises ValueError if the caches alone need more memory than the device has."""
    needed = bytes_on_device(jax.eval_shape(lambda: model.init_state(batch, max_length, dtype)))
    found = device_memory(jax.devices()[:1])
    if found is not None and needed > found:
        raise ValueError(
            f"caches of {max_length:,} tokens for {batch} rows need {decimal(needed)}, and the device has {decimal(found)}; wanted "
            f"a smaller max_new_tokens, or fewer prompts at once"
        )
