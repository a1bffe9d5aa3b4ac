"""Tokenizers: bytes, or a Hugging Face tokenizer.json."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqzoo.data.errors import DataError
from seqzoo.data.sources import Document
from seqzoo.specs import did_you_mean

BYTES = "bytes"
SEPARATOR = "<|endoftext|>"  # of GPT-2 and many others
# A BPE model without a token for unknown text drops what it does not know. With one that no vocabulary has, it raises an error.
NO_TOKEN = "\N{REPLACEMENT CHARACTER}seqzoo: no such token"


class Tokenizer(Protocol):
    """Interface of a tokenizer for corpora and text generation."""

    vocab_size: int  # largest token + 1
    separator: int  # token before every document, and nowhere else
    sha256: str  # of its definition
    unknown: int | None  # token that stands for text outside the vocabulary; None: such text is refused, or there is none

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
    unknown: int | None = None

    def encode(self, text: bytes | str) -> np.ndarray:
        """The UTF-8 bytes of a string, or the bytes given. Bytes of the command line that are not UTF-8 stay as they were typed."""
        return np.frombuffer(text.encode(errors="surrogateescape") if isinstance(text, str) else text, np.uint8).astype(np.uint32)

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
    decoding may differ from the text. Text that the vocabulary does not hold becomes the token for unknown text, `unknown`, or its
    bytes, where the file has one or the other, else it is an error: nothing is dropped.

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
        if getattr(self._library.model, "unk_token", NO_TOKEN) is None:
            self._library.model.unk_token = NO_TOKEN
        known = self._library.get_vocab(with_added_tokens=True)
        if separator not in known:
            special = sorted(token.content for token in self._library.get_added_tokens_decoder().values())
            raise DataError(
                f"{path} has no token {separator!r} to put before documents.{did_you_mean(separator, special)} Its added tokens: "
                f"{', '.join(special) or 'none'}; `separator` chooses"
            )
        self.vocab_size = max(known.values()) + 1
        self.separator, self.separator_token = known[separator], separator
        self.sha256 = hashlib.sha256(contents).hexdigest()
        model = json.loads(contents)["model"]
        self.unknown = model.get("unk_id", known.get(model.get("unk_token")))

    def encode(self, text: bytes | str) -> np.ndarray:
        """The tokens of a string, or of UTF-8 bytes."""
        return self._encode(_string(text), "the text")

    def encode_all(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """`encode` of all documents, on all cores."""
        texts = [_string(document.text, document.place) for document in documents]
        try:
            encoded = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except Exception:  # the library raises no narrower class; one by one, to name the document
            return [self._encode(text, document.place) for text, document in zip(texts, documents, strict=True)]
        return [self._tokens(one, document.place) for one, document in zip(encoded, documents, strict=True)]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        tokens = _checked(tokens, self.vocab_size)
        return self._library.decode(tokens[tokens != self.separator].tolist(), skip_special_tokens=False).encode()

    def _encode(self, text: str, place: str) -> np.ndarray:
        try:
            encoding = self._library.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower class
            counts = Counter(text)
            unknown = [character for character in counts if not self._encodes(character)]
            shown = ", ".join(map(repr, unknown[:5])) + ", ..." * (len(unknown) > 5)
            found = (
                f"characters that {self.path} does not know: {sum(counts[one] for one in unknown)} ({shown})" if unknown else error
            )
            raise DataError(f"{place} has {found}; wanted a tokenizer with a token for unknown text, or one on bytes") from None
        return self._tokens(encoding, place)

    def _encodes(self, character: str) -> bool:
        try:
            self._library.encode(character, add_special_tokens=False)
        except Exception:  # as above
            return False
        return True

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


def load_copy(path: Path, separator: str | None, sha256: str) -> Tokenizer:
    """The tokenizer.json that a corpus or a run keeps. Raises DataError if it is not the one that was copied."""
    tokenizer = load(str(path), separator)
    if tokenizer.sha256 != sha256:
        raise DataError(
            f"{path} is not the tokenizer of this folder: its SHA-256 is {tokenizer.sha256}, wanted {sha256}. Restore it, or make "
            f"the folder again"
        )
    return tokenizer


def _string(text: bytes | str, place: str = "the text") -> str:
    try:
        return (text.encode(errors="surrogateescape") if isinstance(text, str) else text).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 (byte {error.start}: {error.reason}); the tokenizer {BYTES!r} takes any") from None


def _checked(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise DataError(f"token {wrong} is not in [0, {vocab_size})")
    return tokens
