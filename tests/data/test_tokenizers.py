"""Bytes and Hugging Face tokenizers: there and back, separators, and what is refused."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from seqzoo.data import Bytes, DataError, HuggingFace
from seqzoo.data.sources import Document, File
from seqzoo.data.tokenizers import load

TEXTS = ["the cat and the hat", "", "naïve 🐈\n\ttab", "<|endoftext|>the<|other|>", "padding? " * 9]


def document(text):
    return Document(File(Path("a.txt"), "a.txt", "a.txt", True), None, text if isinstance(text, bytes) else text.encode(), 0.0)


def test_every_byte_is_a_token_and_is_decoded_to_itself():
    text = bytes(range(256))
    assert Bytes().encode(text).tolist() == list(range(256)) and Bytes().decode(range(257)) == text
    assert Bytes().encode("é").tolist() == [0xC3, 0xA9] and (Bytes().vocab_size, Bytes().separator) == (257, 256)


@pytest.mark.parametrize("name", ["bytes", "tokenizer.json"])
def test_texts_are_decoded_to_themselves_and_never_contain_the_separator(name, tokenizer_json):
    tokenizer = load("bytes") if name == "bytes" else load(str(tokenizer_json))
    encoded = tokenizer.encode_all([document(text) for text in TEXTS])
    for text, tokens in zip(TEXTS, encoded, strict=True):
        np.testing.assert_array_equal(tokens, tokenizer.encode(text))
        np.testing.assert_array_equal(tokens, tokenizer.encode(text.encode()))
        assert tokens.dtype == np.uint32 and tokenizer.separator not in tokens and np.all(tokens < tokenizer.vocab_size)
        assert tokenizer.decode(tokens) == text.encode()
        assert tokenizer.decode([tokenizer.separator, *tokens.tolist(), tokenizer.separator]) == text.encode()


def test_merges_are_used_and_a_folder_names_its_tokenizer(tokenizer_json):
    tokenizer = load(str(tokenizer_json.parent))
    assert len(tokenizer.encode("the cat and the hat")) < 12
    assert tokenizer.vocab_size == 1 + max(json.loads(tokenizer_json.read_text())["model"]["vocab"].values())


def test_another_separator_can_be_chosen(tokenizer_json):
    one, other = load(str(tokenizer_json)), load(str(tokenizer_json), "<|other|>")
    assert one.separator != other.separator and one.sha256 == other.sha256


def test_a_file_that_is_no_tokenizer_or_has_no_separator_is_refused_by_name(tokenizer_json, tmp_path):
    with pytest.raises(
        DataError, match=r"no token '<\|endofdoc\|>' .* Did you mean '<\|endoftext\|>'\? .*<\|endoftext\|>, <\|other"
    ):
        HuggingFace(tokenizer_json, "<|endofdoc|>")
    with pytest.raises(DataError, match=r"there is no tokenizer byte; wanted 'bytes', or"):
        load("byte")
    with pytest.raises(DataError, match="separator='x' with the tokenizer 'bytes'"):
        load("bytes", "x")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"t\.json is not a tokenizer\.json"):
        load(str(tmp_path / "t.json"))


def test_a_text_that_cannot_be_encoded_is_refused_by_name(tokenizer_json):
    tokenizer = load(str(tokenizer_json))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 \(byte 2: invalid start byte\)"):
        tokenizer.encode_all([document("good"), document(b"ok\xff")])
    ordinary = load(str(tokenizer_json), "a")  # a separator that texts hold
    with pytest.raises(DataError, match=r"a\.txt holds the separator 'a'; wanted a separator that is a special token"):
        ordinary.encode_all([document("cat q a")])


def test_an_id_outside_the_vocabulary_is_not_decoded(tokenizer_json):
    for tokenizer in (Bytes(), load(str(tokenizer_json))):
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(DataError, match=rf"token {wrong} is not in \[0, {tokenizer.vocab_size}\)"):
                tokenizer.decode([0, wrong])


def test_a_missing_library_is_an_error_that_names_the_extra(tokenizer_json, monkeypatch):
    found = builtins.__import__

    def missing(name, *rest, **more):
        if name == "tokenizers":
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"pip install 'seqzoo\[text\]'"):
        load(str(tokenizer_json))
