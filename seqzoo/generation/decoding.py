"""Prefill and decoding of any model: both are `hidden, state = model.hidden(tokens, state=state)`."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.generation.sampling import Sampling, choose
from seqzoo.model import LanguageModel, ModelState

NO_TOKEN = -1  # in place of a token after the end of a row


class Progress(NamedTuple):
    """State of a generation between two calls."""

    logits: Array  # [b, vocab_size], of the next token
    state: ModelState  # after the last token read
    ended: Array  # [b] bool, rows with a stop id
    step: Array  # [] int32, tokens produced


def prefill(model: LanguageModel, rows: list[np.ndarray], *, chunk: int, max_length: int, dtype: Any = None) -> Progress:
    """Reads prompts of any lengths, the last token of each in the last column, in calls of `chunk` tokens.

    Padding on the left has segment id 0, which writes nothing. Memory: one chunk without its logits.
    """
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), -(-longest // chunk) * chunk), np.int32)
    real = np.zeros_like(tokens)
    for row, prompt in enumerate(rows):
        tokens[row, -len(prompt) :], real[row, -len(prompt) :] = prompt, 1
    state = _init_state(model, len(rows), max_length, None if dtype is None else jnp.dtype(dtype))
    logits = jnp.zeros(())  # replaced by the first chunk
    for at in range(0, tokens.shape[1], chunk):
        logits, state = prefill_chunk(model, state, tokens[:, at : at + chunk], real[:, at : at + chunk])
    if _is_larger(state.stack, model.stack):
        state = _unstack_layers(state)
    return Progress(logits, state, jnp.zeros((len(rows),), bool), jnp.int32(0))


def decode_blocks(
    model: LanguageModel,
    progress: Progress,
    sampling: Sampling,
    stop: np.ndarray,
    *,
    max_new_tokens: int,
    top_k: int | None,
    block: int,
) -> Iterator[np.ndarray]:
    """Generates tokens, [b, block] int32 at a time, until there are `max_new_tokens` or every row has ended.

    The host reads one block while the device computes the next.
    """
    limit, before = jnp.int32(max_new_tokens), None
    for _ in range(-(-max_new_tokens // block)):
        tokens, progress = decode(model, progress, sampling, stop, limit, top_k=top_k, block=block)
        if before is not None:
            yield (taken := np.asarray(before))
            if np.all(taken[:, -1] == NO_TOKEN):
                return
        before = tokens
    yield np.asarray(before)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init_state(model, batch, max_length, dtype):
    return model.init_state(batch, max_length, dtype)


def _is_larger(state, parameters) -> bool:
    """True if the state has more bytes than the parameters: then layers are unstacked, and caches are updated in place.

    Otherwise the scan over layers may copy the states, which costs less than reading the parameters, and its compile time does not
    depend on depth.
    """
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return size(state) > size(parameters)


@jax.jit
def _unstack_layers(state):
    return state._replace(stack=state.stack.unstack_layers())


@functools.partial(jax.jit, donate_argnums=1)
def prefill_chunk(model: LanguageModel, state: ModelState, tokens: Array, segment_ids: Array) -> tuple[Array, ModelState]:
    """(logits [b, vocab_size] after the last column, state). Only the last column goes through the head."""
    x, after = model.hidden(tokens, state=state, segment_ids=segment_ids)
    return model.attend(x[:, -1]), cast(ModelState, after)


@functools.partial(jax.jit, static_argnames=("top_k", "block"), donate_argnums=1)
def decode(
    model: LanguageModel, progress: Progress, sampling: Sampling, stop: Array, limit: Array, *, top_k: int | None, block: int
) -> tuple[Array, Progress]:
    """Generates up to `block` tokens in one loop on the device, which ends at `limit` or when every row has ended.

    Args:
      stop: [n] int32, ids that end a row.
      limit: [] int32, largest total number of tokens.
    Returns:
      ([b, block] int32, -1 after the end of a row; the progress after the block).
    """
    first = progress.step

    def unfinished(carry):
        _, now = carry
        return (now.step < jnp.minimum(first + block, limit)) & ~jnp.all(now.ended)

    def advance(carry):
        tokens, (logits, state, ended, step) = carry
        token = choose(logits, sampling, step, top_k)
        tokens = tokens.at[:, step - first].set(jnp.where(ended, NO_TOKEN, token))
        ended |= jnp.any(token[:, None] == stop[None, :], axis=1)
        logits, after = model(token[:, None], state=state)
        return tokens, Progress(logits[:, 0], cast(ModelState, after), ended, step + 1)

    tokens = jnp.full((progress.logits.shape[0], block), NO_TOKEN, jnp.int32)
    return jax.lax.while_loop(unfinished, advance, (tokens, progress))
