"""Small sources: folders of files, and a tokenizer trained on the spot."""

import json

import pytest


@pytest.fixture
def folder(tmp_path):
    """Makes a source: folder({"a.txt": "text", "sub/b.bin": b"..."}) -> its path."""

    def make(files, name="source"):
        top = tmp_path / name
        for path, text in files.items():
            place = top / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text if isinstance(text, bytes) else text.encode())
        return top

    return make


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory):
    """A byte-level BPE of 300 tokens with a separator and another special token, which also asks for truncation and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|other|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat and the bat"] * 20, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def jsonl():
    """The bytes of a .jsonl file of some objects."""
    return lambda *rows: "".join(json.dumps(row) + "\n" for row in rows)
