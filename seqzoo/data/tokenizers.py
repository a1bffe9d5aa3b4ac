"""Tokenizers: bytes, or a Hugging Face tokenizer.json."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqzoo.data.errors import DataError
from seqzoo.data.sources import Document
from seqzoo.specs import did_you_mean

BYTES = "bytes"
SEPARATOR = "<|endoftext|>"  # of GPT-2 and many others


class Tokenizer(Protocol):
    """Interface of a tokenizer for corpora and text generation."""

    vocab_size: int  # largest token + 1
    separator: int  # token before every document, and nowhere else
    sha256: str  # of its definition

    def encode(self, text: bytes | str) -> np.ndarray:
        """The tokens of a text, [n] uint32, without separator. Raises DataError if it cannot be encoded."""
        ...

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """The tokens of each document. Raises DataError, with the document's place."""
        ...

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The text of tokens, without separators. Raises DataError for an id outside the vocabulary."""
        ...


class Bytes:
    """One token per byte, and the separator 256: any file can be encoded, and decoding is exact."""

    vocab_size = 257
    separator = 256
    sha256 = hashlib.sha256(b"bytes, separator 256").hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        """The UTF-8 bytes of a string, or the bytes given."""
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.uint32)

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` of each document."""
        return [self.encode(document.text) for document in documents]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes among the tokens."""
        tokens = _checked(tokens, self.vocab_size)
        return tokens[tokens != self.separator].astype(np.uint8).tobytes()


class HuggingFace:
    """A tokenizer.json of the library `tokenizers`.

    Texts must be UTF-8. No token is added around them, and the name of a special token inside a text is ordinary text, so one
    document never becomes two. Truncation and padding in the file are switched off. Normalisation in the file stays on; then
    decoding may differ from the text.

    Args:
      path: the file.
      separator: the token before every document, as written in the file.
    Raises:
      DataError: the file does not exist, the library cannot read it, or it has no such token.
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
            raise DataError(f"{path} is not a tokenizer.json that the library tokenizers reads: {error}") from None
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        known = self._library.get_vocab(with_added_tokens=True)
        if separator not in known:
            special = sorted(token.content for token in self._library.get_added_tokens_decoder().values())
            raise DataError(
                f"{path} has no token {separator!r} to put before documents.{did_you_mean(separator, special)} Its added tokens: "
                f"{', '.join(special) or 'none'}; `separator` chooses"
            )
        self.vocab_size = max(known.values()) + 1
        self.separator = known[separator]
        self.sha256 = hashlib.sha256(contents).hexdigest()

    def encode(self, text: bytes | str) -> np.ndarray:
        """The tokens of a string, or of UTF-8 bytes."""
        return self._tokens(self._library.encode(_string(text), add_special_tokens=False), "the text")

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` of all documents, on all cores."""
        texts = [_string(document.text, document.place) for document in documents]
        encoded = self._library.encode_batch_fast(texts, add_special_tokens=False)
        return [self._tokens(one, document.place) for one, document in zip(encoded, documents, strict=True)]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        tokens = _checked(tokens, self.vocab_size)
        return self._library.decode(tokens[tokens != self.separator].tolist(), skip_special_tokens=False).encode()

    def _tokens(self, encoding: Any, place: str) -> np.ndarray:
        tokens = np.asarray(encoding.ids, np.uint32)
        if self.separator in tokens:
            token = self._library.id_to_token(self.separator)
            raise DataError(f"{place} holds the separator {token!r}; wanted a separator that is a special token of {self.path}")
        return tokens


def load(name: str = BYTES, separator: str | None = None) -> Tokenizer:
    """The tokenizer "bytes", or the one of a tokenizer.json, named by its path or folder."""
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
