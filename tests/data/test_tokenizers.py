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


def trained(path, alphabet, **settings):
    """A tokenizer.json of single characters, split at spaces, without bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0} | {character: number for number, character in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **settings))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(path / "tokenizer.json"))
    return load(str(path))


def test_text_outside_the_vocabulary_is_counted_and_refused_not_dropped(tmp_path):
    tokenizer = trained(tmp_path, "abc")
    assert tokenizer.encode("a cab").tolist() == [1, 3, 1, 2] and tokenizer.unknown is None
    with pytest.raises(DataError, match=r"the text has characters that .*tokenizer\.json does not know: 3 \('ä', 'ö'\); wanted"):
        tokenizer.encode("aäb öä")
    with pytest.raises(DataError, match=r"a\.txt has characters .* 1 \('z'\)"):
        tokenizer.encode_all([document("abc"), document("abz")])
    with_token = trained(tmp_path, "abc?", unk_token="?")
    assert with_token.unknown == 4 and with_token.encode("aäb").tolist() == [1, 4, 2]


def test_bytes_typed_on_a_command_line_stay_as_they_are(tokenizer_json):
    typed = b"caf\xe9".decode(errors="surrogateescape")  # as sys.argv has them
    assert bytes(Bytes().encode(typed).tolist()) == b"caf\xe9"
    with pytest.raises(DataError, match=r"the text is not UTF-8 \(byte 3"):
        load(str(tokenizer_json)).encode(typed)


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
