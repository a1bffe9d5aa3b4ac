"""Text in and out: what is written piece by piece is what is decoded whole, and the command that does so."""

import numpy as np
import pytest

from helpers.tiny import TINY, quiet
from seqzoo import cli, config, training
from seqzoo.generation import text
from seqzoo.tasks.mqar import MQAR

SAYING = "naïve, 日本語 🙂\n\tend"


class Bytes:
    """A token for each byte, and one between documents."""

    separator = 256

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(ids)


class Lossy(Bytes):
    """As some libraries decode: what is no character yet is U+FFFD."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace").encode()


class Words:
    """Tokens are words; the first of a text has no space before it."""

    words = ("a", "rose", "is", "日本")

    def decode(self, ids):
        return " ".join(self.words[id] for id in ids).encode()


def written(tokenizer, prompt, ids):
    """(the pieces as they come, what closing adds)."""
    pieces = []
    writer = text.TextWriter(tokenizer, prompt, pieces.append)
    for id in ids:
        writer(id)
    before = list(pieces)
    writer.close()
    return before, "".join(pieces[len(before) :])


@pytest.mark.parametrize("tokenizer", [Bytes(), Lossy()], ids=["bytes", "lossy"])
def test_characters_are_written_whole_and_as_soon_as_they_are_complete(tokenizer):
    ids = tokenizer.encode(SAYING)
    pieces, rest = written(tokenizer, tokenizer.encode("é"), ids)
    assert "".join(pieces) == SAYING and rest == ""
    assert [piece for piece in pieces if piece] == list(SAYING)


@pytest.mark.parametrize("tokenizer", [Bytes(), Lossy()], ids=["bytes", "lossy"])
@pytest.mark.parametrize("ids", [[65, 0xF0, 0x9F], [0x80, 0x81, 65, 0xFF], [0xE2, 65, 0x82, 0xE2, 0x82, 0xAC]], ids=str)
def test_bytes_that_are_not_utf8_are_written_as_replacement_characters(tokenizer, ids):
    pieces, rest = written(tokenizer, [66], ids)
    assert "".join(pieces) + rest == bytes(ids).decode(errors="replace")


def test_tokenizers_that_join_words_get_their_context():
    pieces, rest = written(Words(), [0], [1, 2, 0, 1, 3])
    assert pieces == [" rose", " is", " a", " rose", " 日本"] and rest == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder."""
    folder = training.create_run_dir(str(tmp_path_factory.mktemp("runs")), "one")
    training.train(config.replace(config.Experiment(), TINY | {"training.steps": 1}), folder, console=quiet())
    return folder


@pytest.fixture
def run(trained):
    """run(*words) -> exit code of `generate` on a trained run."""
    return lambda *words: cli.main(["generate", str(trained), *words])


def test_a_task_without_text_takes_and_prints_token_ids(run, trained, capsys):
    assert run("--prompt", "3 1 4", "--max-new-tokens", "9", "--temperature", "0") == 0
    shown = capsys.readouterr().out
    ids = [int(word) for word in shown.splitlines()[-1].split()]
    assert ids[:3] == [3, 1, 4] and len(ids) == 12
    assert run("--prompt", "3 1 4", "--max-new-tokens", "9", "--temperature", "0") == 0
    assert capsys.readouterr().out == shown
    model = training.load_model(trained)
    assert text.generate(model, [[3, 1, 4]], max_new_tokens=9).tokens[0].tolist() == ids[3:]


def test_seeds_and_settings_of_sampling_are_used(run, capsys):
    def said(*words):
        assert run("--prompt", "3 1 4", "--max-new-tokens", "12", *words) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert said("--seed", "1") == said("--seed", "1", "--prefill-chunk", "2") != said("--seed", "2")
    assert said("--top-k", "1") == said("--temperature", "0", "--block", "7")


class Letters:
    """Letters from a on, and a separator."""

    separator = 0

    def encode(self, text):
        if text != text.lower():
            raise ValueError(f"prompt={text!r}, wanted small letters")
        return np.array([ord(letter) - 96 for letter in text], np.int32)

    def decode(self, ids):
        return bytes(96 + id for id in ids)


def test_a_task_with_a_tokenizer_gets_the_prompt_as_the_start_of_a_document(run, capsys, monkeypatch):
    monkeypatch.setattr(MQAR, "tokenizer", Letters(), raising=False)
    given = {}

    def generate(model, prompts, *, on_token, **settings):
        given.update(settings, prompts=prompts)
        for step, token in enumerate((24, 25, 0)):
            on_token(np.array([token]), step)

    monkeypatch.setattr(text, "generate", generate)
    assert run("--prompt", "abc") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "abcxy"
    assert given["prompts"][0] == [0, 1, 2, 3] and given["stop"] == [0] and given["max_new_tokens"] == 256
    assert run("--prompt", "") == 0
    assert given["prompts"][0] == [0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompt", "one"), "prompt='one', wanted token ids such as '1 2 3'"),
        ((), "prompts[0] is empty"),
        (("--prompt", "99"), "token id 99, wanted 0 to 31"),
        (("--prompt", "1", "--top-k", "99"), "top_k=99"),
        (("--prompt", "1", "--temperature", "0", "--seed", "1"), "temperature=0 is greedy decoding"),
        (("--prompt", "1", "--temperature", "-1"), "greater than or equal to 0"),
        (("--promt", "1"), "--prompt"),
    ],
    ids=str,
)
def test_a_wrong_prompt_or_setting_is_refused(run, capsys, words, says):
    capsys.readouterr()
    code, printed = run(*words), capsys.readouterr()
    assert code == 2 and says in printed.err and printed.err.count("\n") == 1 and not printed.out
