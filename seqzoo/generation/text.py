"""Text in, text out: a model's answer to a prompt, written as it comes."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from seqzoo.config import Generation
from seqzoo.generation.generate import generate
from seqzoo.model import LanguageModel

UNKNOWN = "\ufffd".encode()  # what stands for bytes that are no text, such as the first half of a character
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}  # of control characters


class Tokenizer(Protocol):
    """What a task of text has as `task.tokenizer`."""

    separator: int | None  # the id before each document and after the last; None: documents have no borders

    def encode(self, text: str) -> np.ndarray:
        """Text as token ids [n]."""

    def decode(self, ids: Sequence[int]) -> bytes:
        """Token ids as text in UTF-8. It may end inside a character: in its first bytes, or in U+FFFD."""


class Numbers:
    """The tokenizer of a task without text: token ids in digits."""

    separator = None

    def encode(self, text: str) -> np.ndarray:
        """Digits as ids: "1 2 3" is [1, 2, 3]."""
        try:
            return np.array([int(word) for word in text.split()], np.int32)
        except (ValueError, OverflowError):
            raise ValueError(f"prompt={text!r}, wanted token ids such as '1 2 3': the run's task has no text") from None

    def decode(self, ids: Sequence[int]) -> bytes:
        """Ids as digits: [1, 2, 3] is "1 2 3 "."""
        return "".join(f"{id} " for id in ids).encode()


class Writer:
    """Writes token after token as text; characters that are not complete are held back.

    What a token adds is the difference between two texts: that of the last tokens with it, and without. So decoders that join words
    by context give what they give at once.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], write: Callable[[str], None]):
        self.decode, self.write, self.ids = tokenizer.decode, write, list(map(int, prompt))
        self.first, self.written = 0, len(self.ids)  # tokens from `first` give the context, tokens up to `written` are written
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, id: int) -> None:
        """One token more."""
        self.ids.append(int(id))
        before, whole = self.decode(self.ids[self.first : self.written]), self.decode(self.ids[self.first :])
        if not whole.endswith(UNKNOWN):
            self.write(self.characters.decode(whole[len(before) :]))
            self.first, self.written = self.written, len(self.ids)

    def close(self) -> None:
        """Writes what was held back."""
        before, whole = self.decode(self.ids[self.first : self.written]), self.decode(self.ids[self.first :])
        self.write(self.characters.decode(whole[len(before) :], final=True))


def answer(model: LanguageModel, tokenizer: Tokenizer, settings: Generation, write: Callable[[str], None]) -> None:
    """Writes the prompt and what follows it, up to the end of the document or `max_new_tokens`.

    Raises ValueError, before anything is written, for a prompt that is none.
    """
    encoded = tokenizer.encode(settings.prompt)
    separators = [] if tokenizer.separator is None else [tokenizer.separator]
    prompt = np.concatenate([np.array(separators, np.int32), encoded])  # the prompt begins a document
    writer = Writer(tokenizer, encoded, write)

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
