"""The two computations of generation, on any model through the one law: `hidden, state = model.hidden(tokens, state=state)`."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from seqzoo.generation.sampling import Sampling, choose
from seqzoo.model import LanguageModel, ModelState

NONE = -1  # in place of a token: the row had ended


class Progress(NamedTuple):
    """Where a generation stands."""

    logits: Array  # [b, vocab_size], of the next token
    state: ModelState  # after the token before it
    ended: Array  # [b] bool, rows that have produced a stop id
    step: Array  # [] int32, tokens produced


def prefill(model: LanguageModel, rows: list[np.ndarray], *, chunk: int, max_length: int, dtype: Any = None) -> Progress:
    """Reads prompts of any lengths, the last token of each in the last column, in calls of `chunk` tokens.

    What fills the rows up on the left has segment id 0, which writes nothing. Memory: that of one chunk, without its logits.
    """
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), -(-longest // chunk) * chunk), np.int32)
    real = np.zeros_like(tokens)
    for row, prompt in enumerate(rows):
        tokens[row, -len(prompt) :], real[row, -len(prompt) :] = prompt, 1
    state = _empty(model, len(rows), max_length, None if dtype is None else jnp.dtype(dtype))
    for at in range(0, tokens.shape[1], chunk):
        logits, state = read(model, state, tokens[:, at : at + chunk], real[:, at : at + chunk])
    if _outweighs(state.stack, model.stack):
        state = _unstack_layers(state)
    return Progress(logits, state, jnp.zeros((len(rows),), bool), jnp.int32(0))


def blocks(
    model: LanguageModel,
    progress: Progress,
    sampling: Sampling,
    stop: np.ndarray,
    *,
    max_new_tokens: int,
    top_k: int | None,
    block: int,
) -> Iterator[np.ndarray]:
    """The tokens that follow, [b, block] int32 at a time, until there are `max_new_tokens` or every row has ended.

    A block is read while the device is at the next one.
    """
    limit, before = jnp.int32(max_new_tokens), None
    for _ in range(-(-max_new_tokens // block)):
        tokens, progress = decode(model, progress, sampling, stop, limit, top_k=top_k, block=block)
        if before is not None:
            yield (taken := np.asarray(before))
            if np.all(taken[:, -1] == NONE):
                return
        before = tokens
    yield np.asarray(before)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _empty(model, batch, max_length, dtype):
    return model.init_state(batch, max_length, dtype)


def _outweighs(state, parameters) -> bool:
    """Whether a token's time goes to the state: then layers are unstacked, and each one's cache is updated in place.

    Else the scan over layers may copy the states, which is less than reading the parameters, and compiles as fast at any depth.
    """
    weigh = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    return weigh(state) > weigh(parameters)


@jax.jit
def _unstack_layers(state):
    return state._replace(stack=state.stack.unstack_layers())


@functools.partial(jax.jit, donate_argnums=1)
def read(model: LanguageModel, state: ModelState, tokens: Array, segment_ids: Array) -> tuple[Array, ModelState]:
    """(logits [b, vocab_size] of what follows the last column, state): only that column goes through the head."""
    x, state = model.hidden(tokens, state=state, segment_ids=segment_ids)
    return model.attend(x[:, -1]), state


@functools.partial(jax.jit, static_argnames=("top_k", "block"), donate_argnums=1)
def decode(
    model: LanguageModel, progress: Progress, sampling: Sampling, stop: Array, limit: Array, *, top_k: int | None, block: int
) -> tuple[Array, Progress]:
    """Up to `block` tokens more, in one loop on the device, which ends where `limit` is reached or every row has ended.

    Args:
      stop: [n] int32, the ids that end a row.
      limit: [] int32, how many tokens there may be in all.
    Returns:
      ([b, block] int32, -1 in rows that had ended; the progress after them).
    """
    first = progress.step

    def goes_on(carry):
        _, now = carry
        return (now.step < jnp.minimum(first + block, limit)) & ~jnp.all(now.ended)

    def advance(carry):
        tokens, (logits, state, ended, step) = carry
        token = choose(logits, sampling, step, top_k)
        tokens = tokens.at[:, step - first].set(jnp.where(ended, NONE, token))
        ended |= jnp.any(token[:, None] == stop[None, :], axis=1)
        logits, state = model(token[:, None], state=state)
        return tokens, Progress(logits[:, 0], state, ended, step + 1)

    tokens = jnp.full((progress.logits.shape[0], block), NONE, jnp.int32)
    return jax.lax.while_loop(goes_on, advance, (tokens, progress))
