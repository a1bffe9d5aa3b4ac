"""Prepared corpora: their layout, that they are resumed wherever they were stopped, and that nothing damaged is read."""

import contextlib
import json
import os
import shutil
import sys

import numpy as np
import pytest

from seqzoo import data
from seqzoo.data import DataError, shards
from seqzoo.data.atomic_io import WriteError
from seqzoo.data.errors import UnreadableError
from seqzoo.data.prepare import SourceChangedError

FILES = {f"{number:02d}.txt": f"document {number} " * (number % 7) for number in range(40)}
SETTINGS = {"held_out": 0.2, "shard_tokens": 300}


@pytest.fixture
def source(folder):
    return str(folder(FILES))


@pytest.fixture
def prepared(source, tmp_path):
    out = tmp_path / "out"
    data.prepare(source, out, **SETTINGS)
    return out


def contents(folder):
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def layout(source, held_out, encode, separator):
    """The definition: {split: (tokens, starts)} of a folder of text files."""
    splits = {"train": ([], []), "held_out": ([], [])}
    for document in data.sources.Documents(data.sources.files(source)):
        tokens, starts = splits[document.split(held_out)]
        starts.append(len(tokens))
        tokens += [separator, *encode(document.text)]
    for tokens, _ in splits.values():
        tokens.append(separator)
    return splits


def check_layout(corpus, wanted):
    for name, (tokens, starts) in wanted.items():
        split = corpus.splits[name]
        assert split.tokens[0 : len(split.tokens)].tolist() == tokens
        assert split.starts.tolist() == starts
        assert (split.documents, split.targets) == (len(starts), len(tokens) - 1)
        assert split.longest == max(np.diff([*starts, len(tokens) - 1]))


def test_a_prepared_corpus_equals_the_one_read_into_memory(source, prepared):
    disk, memory = data.load(str(prepared)), data.load(source, held_out=0.2)
    wanted = layout(source, 0.2, list, 256)
    check_layout(disk, wanted)
    check_layout(memory, wanted)
    assert disk.sha256 == memory.sha256 and disk.describe() == memory.describe()
    assert disk.describe()["train"]["bytes"] + disk.describe()["held_out"]["bytes"] == sum(map(len, FILES.values()))
    assert set(memory.fingerprint()) == {*FILES, "tokenizer"}
    assert set(disk.fingerprint()) == {path.name for path in prepared.glob("*.npy")} | {"tokenizer"}


def test_slices_of_a_stream_cross_shards(prepared):
    stream = data.load(str(prepared)).splits["train"].tokens
    whole = np.concatenate([part[0 : len(part)] for part in stream.parts])
    assert len(stream.parts) > 3
    edges = sorted({0, 1, len(whole), *stream.ends, *(end - 1 for end in stream.ends)})
    for begin in edges:
        for end in edges:
            if begin <= end:
                np.testing.assert_array_equal(stream[begin:end], whole[begin:end])
    for wrong in ((-1, 2), (3, 2), (0, len(whole) + 1)):
        with pytest.raises(IndexError):
            stream[slice(*wrong)]


def test_shards_hold_whole_documents_up_to_their_size_in_the_smallest_type(folder, tmp_path, tokenizer_json):
    source = str(folder({**FILES, "long.txt": "x" * 1000}))
    manifest = data.prepare(source, tmp_path / "bytes", **SETTINGS)
    for split in (manifest.train, manifest.held_out):
        assert all(shard.tokens <= 301 or shard.documents == 1 for shard in split.shards)
    assert {np.load(path).dtype for path in (tmp_path / "bytes").glob("*.tokens.npy")} == {np.dtype("uint16")}
    assert [shards.dtype(size).itemsize for size in (2, 256, 257, 65536, 65537)] == [1, 1, 2, 2, 4]


def test_a_hugging_face_tokenizer_is_copied_into_the_folder(source, tmp_path, tokenizer_json):
    out = tmp_path / "out"
    data.prepare(source, out, tokenizer=str(tokenizer_json), separator="<|other|>", **SETTINGS)
    tokenizer = data.HuggingFace(tokenizer_json, "<|other|>")
    corpus = data.load(str(out))
    check_layout(corpus, layout(source, 0.2, lambda text: tokenizer.encode(text).tolist(), tokenizer.separator))
    assert data.tokenizer_of(str(out)).separator == corpus.separator == tokenizer.separator
    (out / "tokenizer.json").write_bytes(tokenizer_json.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"tokenizer\.json is not the tokenizer of this folder"):
        data.tokenizer_of(str(out))


@pytest.mark.parametrize("moment", ["before", "inside", "after"])
def test_after_a_kill_at_any_moment_the_final_corpus_is_the_same_byte_for_byte(source, prepared, tmp_path, monkeypatch, moment):
    whole, save = contents(prepared), np.save
    for fatal in range(sum(name.endswith(".npy") for name in whole)):
        out, count = tmp_path / f"{moment}-{fatal}", 0

        def killed(file, array, fatal=fatal):
            nonlocal count
            count += 1
            if count <= fatal:
                return save(file, array)
            if moment == "inside":
                file.write(b"half of it")
                file.flush()
                shutil.copy(file.name, f"{str(file.name).rsplit('.', 2)[0]}.99999.tmp")  # what a killed process leaves
            elif moment == "after":
                save(file, array)
                file.flush()
                shutil.copy(file.name, str(file.name).rsplit(".", 2)[0])  # renamed, and not yet in the manifest
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(np, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                data.prepare(source, out, **SETTINGS)
            with pytest.raises(DataError, match="is not completely prepared; run the same"):
                data.load(str(out))
        again = []
        with monkeypatch.context() as patch:
            patch.setattr(np, "save", lambda file, array, again=again: (again.append(1), save(file, array)))
            data.prepare(source, out, **SETTINGS)
        assert contents(out) == whole
        assert len(again) == sum(name.endswith(".npy") for name in whole) - fatal // 2 * 2  # none that was complete


def test_after_a_kill_before_or_after_the_manifest_the_final_corpus_is_the_same(source, prepared, tmp_path, monkeypatch):
    whole, write = contents(prepared), shards.write_manifest
    assert "unfinished.json" not in whole
    for last in ("manifest.json", "unfinished.json"):
        for written in (False, True):
            out = tmp_path / f"{last}-{written}"

            def killed(folder, name, manifest, last=last, written=written):
                if name != last or written:
                    write(folder, name, manifest)
                if name == last:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(shards, "write_manifest", killed)
                with pytest.raises(KeyboardInterrupt):
                    data.prepare(source, out, **SETTINGS)
            data.prepare(source, out, **SETTINGS)
            assert contents(out) == whole


def test_a_finished_corpus_is_not_changed(source, prepared):
    times = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    data.prepare(source, prepared, **SETTINGS)
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == times


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"held_out": 0.1}, "held_out is 0.2 there, 0.1 here"),
        ({"shard_tokens": 301}, "shard_tokens is 300 there, 301 here"),
        ({"field": "body"}, "field is 'text' there, 'body' here"),
        ({"tokenizer": True}, "tokenizer is 'bytes' there, 'tokenizer.json' here"),
        ({"held_out": 1.0}, r"held_out=1.0, wanted a number in \[0, 1\)"),
        ({"shard_tokens": 0}, "shard_tokens=0, wanted a whole number of at least 1"),
    ],
)
def test_other_settings_are_refused_by_name(source, prepared, tokenizer_json, changed, says):
    changed = {name: str(tokenizer_json) if value is True else value for name, value in changed.items()}
    whole = contents(prepared)
    with pytest.raises(DataError, match=says):
        data.prepare(source, prepared, **{**SETTINGS, **changed})
    assert contents(prepared) == whole


def test_other_files_are_refused(folder, source, prepared):
    folder({"new.txt": "new"})
    with pytest.raises(DataError, match=r"files is 40 there, 41 here; listing is '.*' there"):
        data.prepare(source, prepared, **SETTINGS)


def test_folders_that_hold_something_else_are_refused(source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="other is not empty and holds no corpus"):
        data.prepare(source, other, **SETTINGS)
    with pytest.raises(DataError, match="is inside the source"):
        data.prepare(source, f"{source}/corpus", **SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; wanted a folder"):
        data.prepare(source, tmp_path / "file", **SETTINGS)
    with pytest.raises(WriteError, match=r"cannot write .*file"):
        data.prepare(source, tmp_path / "file" / "corpus", **SETTINGS)


REFUSED = {
    "not UTF-8": ({"39.txt": b"\xff"}, {"tokenizer": True}, "is not UTF-8"),
    "a line that is not JSON": ({"39.jsonl": b'{"text": "a"}\nno\n'}, {}, "line 2: not JSON"),
    "another field": ({"39.jsonl": b'{"words": "a"}\n'}, {}, "no field is called 'text'"),
    "nothing held out": ({}, {"held_out": 1e-9}, "holds none of 40 documents out"),
}


@pytest.mark.parametrize(("files", "settings", "says"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.parametrize("made_before", [False, True])
def test_a_refused_source_leaves_nothing_that_blocks_its_correction(
    folder, tmp_path, tokenizer_json, files, settings, says, made_before
):
    source, out = folder({**FILES, **files}), tmp_path / "new" / "out"
    if made_before:
        out.mkdir(parents=True)
    if "tokenizer" in settings:
        settings = {"tokenizer": str(tokenizer_json)}
    with pytest.raises(DataError, match=says):
        data.prepare(str(source), out, **SETTINGS | settings)
    assert not any(out.iterdir()) if made_before else not out.parent.exists()
    for name in files:
        (source / name).unlink()
    data.prepare(str(source), out, **SETTINGS)


def test_a_file_that_cannot_be_read_now_leaves_the_complete_shards(source, tmp_path, monkeypatch):
    out, rows = tmp_path / "out", data.sources.Documents._whole

    def failing(self, file):
        if file.key == "35.txt":
            raise OSError(5, "Input/output error")
        return rows(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(data.sources.Documents, "_whole", failing)
        patch.setattr(sys.modules["seqzoo.data.prepare"], "GROUP_BYTES", 1)
        with pytest.raises(UnreadableError, match=r"cannot read .*35\.txt: Input/output error"):
            data.prepare(source, out, **SETTINGS)
    kept = contents(out)
    assert sum(name.endswith(".npy") for name in kept) > 2
    data.prepare(source, out, **SETTINGS)
    assert all(contents(out)[name] == kept[name] for name in kept if name.endswith(".npy"))


@pytest.mark.parametrize("finished", [False, True])
def test_a_file_replaced_at_equal_size_is_noticed_by_its_contents(folder, tmp_path, monkeypatch, finished):
    source, out, save = folder(FILES), tmp_path / "out", np.save
    count = iter(range(100))
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(np, "save", lambda *a: save(*a) if next(count) < 8 else (_ for _ in ()).throw(KeyboardInterrupt))
        with contextlib.suppress(KeyboardInterrupt):
            data.prepare(str(source), out, **SETTINGS)
    before = contents(out)
    (source / "01.txt").write_text(FILES["01.txt"].replace("document", "DOCUMENT"))
    with pytest.raises(SourceChangedError, match=r"00000\.tokens\.npy was made of other texts than those up to .*\.txt; wanted"):
        data.prepare(str(source), out, **SETTINGS)
    assert contents(out) == before


def test_settings_may_change_until_a_shard_is_complete(folder, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            data.prepare(source, tmp_path / "out", **SETTINGS)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished.json"]
    assert data.prepare(source, tmp_path / "out", held_out=0.5, shard_tokens=300).settings.held_out == 0.5


def test_one_process_at_a_time_prepares_into_a_folder(source, tmp_path, monkeypatch):
    save, refused = np.save, []

    def meanwhile(*arguments):
        if not refused:
            refused.append("begun")
            with pytest.raises(DataError, match=r"another process prepares .*out; wanted one at a time") as caught:
                data.prepare(source, tmp_path / "out", **SETTINGS)
            refused.append(caught)
        save(*arguments)

    monkeypatch.setattr(np, "save", meanwhile)
    data.prepare(source, tmp_path / "out", **SETTINGS)
    assert len(refused) == 2 and data.load(str(tmp_path / "out"))


def test_tokens_for_unknown_text_are_counted(folder, tmp_path):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, "?": 1, "a": 2}, [], unk_token="?"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = folder({"1.txt": "abca", "2.txt": "zz"})
    manifest = data.prepare(str(source), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"), held_out=0)
    assert manifest.train.unknown == 4


def test_a_split_without_documents_is_refused_unless_held_out_is_zero(folder, tmp_path):
    source = str(folder({"one.txt": "only one"}))
    for name, call in {
        "memory": lambda fraction: data.load(source, held_out=fraction),
        "disk": lambda fraction: data.prepare(source, tmp_path / str(fraction), held_out=fraction),
    }.items():
        with pytest.raises(DataError, match="held_out=1e-09 holds none of 1 documents out"):
            call(1e-9)
        with pytest.raises(DataError, match="none of 1 documents is left for training; wanted more documents, or held_out below"):
            call(1 - 1e-9)
        call(0.0)
        assert name
    assert data.load(str(tmp_path / "0.0")).describe() == data.load(source, held_out=0.0).describe()
    assert data.load(source, held_out=0.0).splits["held_out"].targets == 0


def one(folder, pattern="train-*.tokens.npy"):
    return sorted(folder.glob(pattern))[1]


def damage_missing(out, other):
    one(out).unlink()


def damage_truncated(out, other):
    one(out).write_bytes(one(out).read_bytes()[:-1])


def damage_longer(out, other):
    one(out).write_bytes(one(out).read_bytes() + b"\0")


def damage_changed(out, other):
    changed = bytearray(one(out).read_bytes())
    changed[-1] ^= 1
    one(out).write_bytes(changed)


def damage_starts(out, other):
    changed = bytearray(one(out, "held_out-*.starts.npy").read_bytes())
    changed[-8] ^= 1
    one(out, "held_out-*.starts.npy").write_bytes(changed)


def damage_foreign(out, other):
    shutil.copy(one(other), out / "train-00099.tokens.npy")


def damage_swapped(out, other):
    shutil.copy(one(other), one(out))


def damage_manifest(out, other):
    path = out / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])


def damage_version(out, other):
    path = out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))


def damage_schema(out, other):
    path = out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"owner": "me"}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_missing, r"train-00001\.tokens\.npy is missing"),
        (damage_truncated, r"train-00001\.tokens\.npy is truncated: \d+ bytes, wanted \d+"),
        (damage_longer, r"train-00001\.tokens\.npy is too long: \d+ bytes, wanted \d+"),
        (damage_changed, r"train-00001\.tokens\.npy is not what was prepared: its SHA-256 is \w+, wanted \w+"),
        (damage_starts, r"held_out-00001\.starts\.npy is not what was prepared"),
        (damage_foreign, r"train-00099\.tokens\.npy does not belong to this corpus: .*manifest\.json does not list it"),
        (damage_swapped, r"train-00001\.tokens\.npy is not what was prepared"),
        (damage_manifest, r"manifest\.json is damaged: wanted a JSON object"),
        (damage_version, r"manifest\.json has version 2, wanted 1"),
        (damage_schema, r"manifest\.json is not a manifest of seqzoo, or damaged: owner: Extra"),
    ],
)
def test_a_damaged_corpus_is_refused_by_name(folder, prepared, tmp_path, damage, says):
    data.load(str(prepared))  # what is kept of an earlier call must not hide it
    data.prepare(str(folder({name: text.upper() for name, text in FILES.items()}, "upper")), tmp_path / "other", **SETTINGS)
    damage(prepared, tmp_path / "other")
    with pytest.raises(DataError, match=says):
        data.load(str(prepared))


def test_without_verification_sizes_are_still_compared(prepared):
    damage_changed(prepared, None)
    data.load(str(prepared), verify=False)
    damage_truncated(prepared, None)
    with pytest.raises(DataError, match="is truncated"):
        data.load(str(prepared), verify=False)


def test_a_prepared_corpus_has_its_own_settings_and_cannot_be_combined(source, prepared):
    assert data.load(str(prepared), held_out=0.2, field="text") is data.load(str(prepared))
    with pytest.raises(DataError, match=r"held_out=0.05, but .*out was prepared with 0.2; wanted that, or None"):
        data.load(str(prepared), held_out=0.05)
    with pytest.raises(DataError, match="is a prepared corpus and one of several sources"):
        data.load(f"{prepared},{source}")


def test_a_source_that_is_too_large_for_memory_is_refused(source, monkeypatch):
    monkeypatch.setattr(data.corpus, "LIMIT", 100)
    with pytest.raises(
        DataError, match=r"bytes are too many to read into memory \(at most 100\); prepare them first, with train.py prepare"
    ):
        data.load(source)


def test_a_source_is_read_once_until_a_file_changes(folder, source):
    first = data.load(source)
    assert data.load(source) is first
    folder({"00.txt": "another text"})
    assert data.load(source).fingerprint()["00.txt"] != first.fingerprint()["00.txt"]


def test_a_folder_with_a_manifest_of_something_else_is_an_ordinary_folder(folder):
    top = folder({"manifest.json": '{"name": "an extension"}', **FILES})
    assert "manifest.json" in data.load(str(top), held_out=0.2).fingerprint()


def test_a_shard_of_another_type_is_refused_also_without_hashes(prepared):
    path = one(prepared)
    tokens = np.load(path)
    np.save(path, np.zeros(len(tokens) // 2, np.uint32) if len(tokens) % 2 == 0 else np.zeros(len(tokens), np.int16))
    with pytest.raises(
        DataError, match=r"train-00001\.tokens\.npy holds \w+ \[\d+\], wanted uint16 \[\d+\]: it belongs to another corpus"
    ):
        data.load(str(prepared), verify=False)


def test_a_shard_damaged_between_two_calls_is_refused_by_name(source, prepared):
    (prepared / "manifest.json").rename(prepared / "unfinished.json")
    damage_truncated(prepared, None)
    with pytest.raises(DataError, match=r"train-00001\.tokens\.npy is truncated"):
        data.prepare(source, prepared, **SETTINGS)


@pytest.mark.parametrize("how", ["truncated", "overwritten", "other tokens"])
def test_a_shard_that_changes_while_it_is_read_is_an_error_by_name(prepared, how):
    tokens = data.load(str(prepared), verify=False).splits["train"].tokens
    path = sorted(prepared.glob("train-*.tokens.npy"))[0]
    stat, found = path.stat(), tokens[0:10]
    if how == "truncated":
        os.truncate(path, stat.st_size // 2)
    else:
        path.write_bytes(b"\xff" * stat.st_size)
    if how == "other tokens":  # a disk that returns them has the old time
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    says = (
        "holds the token 65535 at place 0, wanted less than the vocabulary's 257" if how == "other tokens" else "was changed while"
    )
    with pytest.raises(DataError, match=rf"{path.name} {says}"):
        tokens[0:10]
    assert found[0] == 256


def test_a_moved_row_border_changes_the_fingerprint(folder, jsonl):
    many = [{"text": str(number)} for number in range(50)]
    one, other = (
        data.load(str(folder({"a.jsonl": jsonl(*many, *({"text": text} for text in texts))}, name))).fingerprint()
        for name, texts in {"one": ("ab", "c"), "other": ("a", "bc")}.items()
    )
    assert one["a.jsonl"] != other["a.jsonl"] and one["tokenizer"] == other["tokenizer"]
