"""From bytes to tokens and back: the bytes themselves, or a Hugging Face tokenizer.json."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqzoo.data.errors import DataError
from seqzoo.data.sources import Document
from seqzoo.specs import did_you_mean

BYTES = "bytes"
SEPARATOR = "<|endoftext|>"  # GPT-2's, and of many since


class Tokenizer(Protocol):
    """What corpora and text generation ask of a tokenizer."""

    vocab_size: int  # one more than the largest token
    separator: int  # the token that stands before every document, and nowhere else
    sha256: str  # of what defines it

    def encode(self, text: bytes | str) -> np.ndarray:
        """The tokens of a text, [n] uint32, without separator. Raises DataError if it cannot be encoded."""

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """The tokens of each document. Raises DataError, with the document's place."""

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The text of some tokens; separators have none. Raises DataError for what is no token."""


class Bytes:
    """A byte is a token, and the separator is 256: any file can be encoded, and decoding gives it back."""

    vocab_size = 257
    separator = 256
    sha256 = hashlib.sha256(b"bytes, separator 256").hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        """The UTF-8 bytes of a string, or the bytes given."""
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.uint32)

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` of each."""
        return [self.encode(document.text) for document in documents]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes among the tokens."""
        tokens = _checked(tokens, self.vocab_size)
        return tokens[tokens != self.separator].astype(np.uint8).tobytes()


class HuggingFace:
    """A tokenizer.json of the library `tokenizers`.

    Texts must be UTF-8. No token is added around them; what looks like a special token in a text is ordinary text, so that no
    document can pass for two. Truncation and padding, which such files may ask for, are off. Normalisation, which they may ask for
    too, stays on, and then decoding does not give back every byte.

    Args:
      path: the file.
      separator: the token that is to stand before every document, as it is written.
    Raises:
      DataError: no such file, none that the library reads, or one without that token.
    """

    def __init__(self, path: str | Path, separator: str = SEPARATOR):
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise DataError(f"{path}: reading a tokenizer needs tokenizers: pip install 'seqzoo[text]'") from None
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"there is no tokenizer {path}; wanted {BYTES!r}, or the path of a tokenizer.json")
        contents = self.path.read_bytes()
        try:
            self._library = Library.from_buffer(contents)
        except ValueError as error:
            raise DataError(f"{path} is no tokenizer.json that the library tokenizers reads: {error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        known = self._library.get_vocab(with_added_tokens=True)
        if separator not in known:
            special = sorted(token.content for token in self._library.get_added_tokens_decoder().values())
            raise DataError(
                f"{path} has no token {separator!r} to stand before documents.{did_you_mean(separator, special)} Its added tokens: "
                f"{', '.join(special) or 'none'}; `separator` chooses"
            )
        self.vocab_size = max(known.values()) + 1
        self.separator = known[separator]
        self.sha256 = hashlib.sha256(contents).hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        """The tokens of a text that is, or is a string of, UTF-8."""
        return self._tokens(self._library.encode(_string(text), add_special_tokens=False), "the text")

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` of all together, on all cores."""
        texts = [_string(document.text, document.place) for document in documents]
        encoded = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [self._tokens(one, document.place) for one, document in zip(encoded, documents, strict=True)]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The text of the tokens; bytes that are no UTF-8 come out as U+FFFD."""
        tokens = _checked(tokens, self.vocab_size)
        return self._library.decode(tokens[tokens != self.separator].tolist(), skip_special_tokens=False).encode()

    def _tokens(self, encoding: Any, place: str) -> np.ndarray:
        tokens = np.asarray(encoding.ids, np.uint32)
        if self.separator in tokens:
            token = self._library.id_to_token(self.separator)
            raise DataError(f"{place} holds the separator {token!r}; wanted a separator that is a special token of {self.path}")
        return tokens


def load(name: str = BYTES, separator: str | None = None) -> Tokenizer:
    """The tokenizer "bytes", or that of a tokenizer.json or of the folder it lies in."""
    if name == BYTES:
        if separator is not None:
            raise DataError(f"separator={separator!r} with the tokenizer {BYTES!r}, whose separator is 256; wanted None")
        return Bytes()
    path = Path(name).expanduser()
    return HuggingFace(path / "tokenizer.json" if path.is_dir() else path, SEPARATOR if separator is None else separator)


def _string(text: bytes | str, place: str = "the text") -> str:
    try:
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 (byte {error.start}: {error.reason}); the tokenizer {BYTES!r} takes any") from None


def _checked(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise DataError(f"token {wrong} is not in [0, {vocab_size})")
    return tokens
