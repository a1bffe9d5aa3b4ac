"""Streaming text generation: the answer to a prompt, written as it is generated."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from seqzoo.config import Generation
from seqzoo.generation.generate import generate
from seqzoo.model import LanguageModel

UNKNOWN = "\ufffd".encode()  # replaces bytes that are not UTF-8, such as the first half of a character
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {
    127: 0x2421
}  # visible symbols for control characters


class Tokenizer(Protocol):
    """The interface of `task.tokenizer` in a task of text."""

    @property
    def separator(self) -> int | None:
        """Id before each document and after the last; None: no separator."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Text as token ids [n]."""
        ...

    def decode(self, ids: Sequence[int], /) -> bytes:
        """Token ids as UTF-8. The end may be an incomplete character: its first bytes, or U+FFFD."""
        ...


class TokenIds:
    """The tokenizer of a task without text: token ids as decimal numbers."""

    separator: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """ "1 2 3" is [1, 2, 3]."""
        try:
            return np.array([int(word) for word in text.split()], np.int32)
        except (ValueError, OverflowError):
            raise ValueError(f"prompt={text!r}, wanted token ids such as '1 2 3': the run's task has no text") from None

    def decode(self, ids: Sequence[int]) -> bytes:
        """[1, 2, 3] is "1 2 3 "."""
        return "".join(f"{id} " for id in ids).encode()


class TextWriter:
    """Writes tokens as text one by one; incomplete characters wait for their last bytes.

    The text of a token is the difference between the decoded text of the last tokens with it and without it, so the result equals
    decoding all tokens at once, also for tokenizers that join words by context.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], write: Callable[[str], None]):
        self.decode, self.write, self.ids = tokenizer.decode, write, list(map(int, prompt))
        self.first, self.written = 0, len(self.ids)  # `first`: start of the context; `written`: end of the written tokens
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, id: int) -> None:
        """Adds a token."""
        self.ids.append(int(id))
        before, whole = self.decode(self.ids[self.first : self.written]), self.decode(self.ids[self.first :])
        if not whole.endswith(UNKNOWN):
            self.write(self.characters.decode(whole[len(before) :]))
            self.first, self.written = self.written, len(self.ids)

    def close(self) -> None:
        """Writes the bytes that still wait."""
        before, whole = self.decode(self.ids[self.first : self.written]), self.decode(self.ids[self.first :])
        self.write(self.characters.decode(whole[len(before) :], final=True))


def generate_text(model: LanguageModel, tokenizer: Tokenizer, settings: Generation, write: Callable[[str], None]) -> None:
    """Writes the prompt and its continuation, up to the end of the document or `max_new_tokens`.

    Raises ValueError for a wrong prompt, before anything is written.
    """
    encoded = tokenizer.encode(settings.prompt).tolist()
    separators = [] if tokenizer.separator is None else [tokenizer.separator]
    prompt = [*separators, *encoded]  # the prompt begins a document
    writer = TextWriter(tokenizer, encoded, write)

    def show(tokens: np.ndarray, step: int) -> None:
        if step == 0:
            write(tokenizer.decode(encoded).decode(errors="replace"))
        if tokens[0] not in separators:
            writer(tokens[0])

    generate(
        model,
        [prompt],
        max_new_tokens=settings.max_new_tokens,
        key=None if settings.temperature == 0 else jax.random.key(settings.seed or 0),
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        stop=separators,
        prefill_chunk=settings.prefill_chunk,
        block=settings.block,
        on_token=show,
    )
    writer.close()
