"""Sources: their files and documents, the split of each, and sources that are refused."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from seqzoo.data import DataError, sources
from seqzoo.data.sources import Document, Documents, File


def documents(source, **settings):
    return [(d.file.label, d.row, d.text) for d in Documents(sources.files(source), **settings)]


def test_a_folder_gives_its_files_by_name_without_hidden_binary_and_compressed_ones(folder):
    top = folder(
        {
            "b.txt": "two",
            "a/z.py": "one",
            "a.txt": "",
            "latin1": b"caf\xe9",
            ".hidden": "no",
            ".git/config": "no",
            "image.png": b"\x89PNG\0",
            "late zero": b"x" * 8000 + b"\0",
            "log.gz": b"\x1f\x8b",
        }
    )
    (top / "link.txt").symlink_to(top / "b.txt")  # of a file that is there already
    (top / "round").symlink_to(top, target_is_directory=True)
    found = Documents(sources.files(str(top)))
    assert [(d.file.key, d.row, d.text) for d in found] == [
        ("a.txt", None, b""),
        ("a/z.py", None, b"one"),
        ("b.txt", None, b"two"),
        ("late zero", None, b"x" * 8000 + b"\0"),
        ("latin1", None, b"caf\xe9"),
    ]
    assert found.skipped == 2


def test_a_file_named_by_a_glob_or_a_path_is_read_as_it_is(folder):
    top = folder({"x/a.bin": b"\0", "x/y/b.bin": "b", "x/.c.bin": "c", "d.txt": "d"})
    assert documents(f"{top}/**/*.bin") == [("x/a.bin", None, b"\0"), ("x/y/b.bin", None, b"b")]
    assert documents(f"{top}/x/*.bin") == [("a.bin", None, b"\0")]
    assert documents(f"{top}/x/.c.bin") == [(".c.bin", None, b"c")]


def test_relative_paths_and_the_home_folder_are_resolved(folder, monkeypatch):
    top = folder({"a.txt": "a", "b/c.txt": "c"})
    monkeypatch.chdir(top)
    monkeypatch.setenv("HOME", str(top))
    assert documents("*.txt") == documents("~/*.txt") == documents("a.txt") == documents("./a.txt") == [("a.txt", None, b"a")]
    assert documents("~/b") == documents("b") == documents("./b/") == [("c.txt", None, b"c")]


def test_several_sources_are_named_with_commas_or_as_a_tuple(folder):
    one, two = folder({"a.txt": "1", "b.txt": "2"}, "one"), folder({"a.txt": "3"}, "two, three")
    assert documents((f"{one}/b.txt", str(two))) == [(f"{one}/b.txt:b.txt", None, b"2"), (f"{two}:a.txt", None, b"3")]
    assert documents(f"{one}/b.txt, {one}/a.txt") == [(f"{one}/b.txt:b.txt", None, b"2"), (f"{one}/a.txt:a.txt", None, b"1")]


def test_the_standard_library_comes_without_tests_and_installed_packages():
    files = sources.files("stdlib")
    keys = [file.key for file in files]
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(keys) and keys == sorted(keys)
    parts = [set(Path(key).parts) for key in keys]
    assert not any(part & {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"} for part in parts)
    assert {Path(key).suffix for key in keys} == {".py"}
    (decoder,) = (file for file in files if file.key == "json/decoder.py")
    (document,) = Documents([decoder])
    assert document.text == Path(sysconfig.get_path("stdlib"), "json", "decoder.py").read_bytes()


def test_a_line_of_jsonl_is_a_document(folder, jsonl):
    top = folder({"a.jsonl": "\ufeff" + jsonl({"text": "é", "id": 1}) + "\n" + jsonl({"text": ""}, {"text": "b\n"})})
    assert documents(str(top)) == [("a.jsonl", 1, "é".encode()), ("a.jsonl", 3, b""), ("a.jsonl", 4, b"b\n")]
    top = folder({"b.jsonl": jsonl({"body": "x"})}, "other")
    assert documents(str(top), field="body") == [("b.jsonl", 1, b"x")]


def test_a_row_of_parquet_is_a_document(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = [f"row {number}" for number in range(1000)]
    for name, kind in {"a": pyarrow.string(), "b": pyarrow.large_string(), "c": pyarrow.binary()}.items():
        table = pyarrow.table({"id": range(1000), "text": pyarrow.array(texts, kind)})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=300)
        assert documents(f"{tmp_path}/{name}.parquet") == [
            (f"{name}.parquet", number, text.encode()) for number, text in enumerate(texts, 1)
        ]
    (tmp_path / "d.parquet").write_text("PAR1 this is none")
    with pytest.raises(DataError, match=r"d\.parquet is not a Parquet file, or damaged"):
        documents(f"{tmp_path}/d.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no field is called 'txt'. Did you mean 'text'\? Fields: id, text"):
        documents(f"{tmp_path}/a.parquet", field="txt")
    with pytest.raises(DataError, match=r"a\.parquet, row 1: field 'id' is 0, wanted text"):
        documents(f"{tmp_path}/a.parquet", field="id")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match=r"null\.parquet, row 2: field 'text' is null, wanted text"):
        documents(f"{tmp_path}/null.parquet")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "cut', r"line 2: not JSON \(Invalid control character"),
        ('["a"]', r"line 2: wanted an object with the field 'text', found \[\"a\"\]"),
        ('{"txt": "a", "id": 1}', r"line 2: no field is called 'text'. Did you mean 'txt'\? Fields: txt, id; `field` chooses"),
        ('{"text": null}', "line 2: field 'text' is null, wanted text"),
        ('{"text": "\\ud800"}', "line 2: field 'text' is not valid text"),
        (b'{"text": "\xff"}', "line 2: not JSON"),
    ],
)
def test_a_line_without_text_is_refused_by_name(folder, jsonl, line, says):
    line = line if isinstance(line, bytes) else line.encode()
    top = folder({"a.jsonl": jsonl({"text": "good"}).encode() + line + b"\n"})
    with pytest.raises(DataError, match=rf"a\.jsonl, {says}"):
        documents(str(top))


def test_a_missing_source_is_refused_by_name(folder, monkeypatch):
    top = folder({"corpus.txt": "a", "log.txt.gz": b"\x1f", "only/.hidden": "a"})
    monkeypatch.chdir(top)
    for source, says in {
        "corpsu.txt": r"no file or folder 'corpsu.txt'. Did you mean 'corpus.txt'\?",
        "stdlb": r"Did you mean 'stdlib'\?",
        "*.md": "no file matches '\\*.md'",
        "only": "the folder only holds no file",
        "": "source='', wanted",
        (): r"source=\(\), wanted",
        "log.txt.gz": "log.txt.gz is compressed; wanted plain text",
        "corpus.txt,corpus.txt": "names the same twice",
        f"{top},*.txt": r"'\*.txt' names corpus.txt, which '.*' names too; wanted each file once",
    }.items():
        with pytest.raises(DataError, match=says):
            documents(source)
    for source in ("corpsu.txt", "*.md", "", "stdlib, corpsu.txt"):
        with pytest.raises(DataError):
            sources.check(source)
    sources.check("stdlib, corpus.txt, *.txt, only")


def test_a_file_that_vanishes_is_refused_by_name(folder):
    top = folder({"a.txt": "a"})
    files = sources.files(str(top))
    (top / "a.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
        list(Documents(files))


def document(key, row=None):
    return Document(File(Path("/somewhere") / key, key, key, True), row, b"", 0.0)


def test_the_split_is_a_fraction_of_all_documents_and_a_larger_fraction_only_adds():
    for many in ([document(f"src/{number}.py") for number in range(4000)], [document("a.jsonl", number) for number in range(4000)]):
        held = {fraction: {d.place for d in many if d.split(fraction) == "held_out"} for fraction in (0.0, 0.05, 0.2)}
        assert held[0.0] < held[0.05] < held[0.2]
        for fraction in (0.05, 0.2):
            assert abs(len(held[fraction]) - fraction * 4000) < 5 * np.sqrt(4000 * fraction * (1 - fraction))


def test_adding_files_or_sources_or_moving_the_folder_leaves_every_document_in_its_split(folder, jsonl):
    rows = [{"text": str(number)} for number in range(50)]
    before = {**{f"{name}.txt": name for name in "abcdefghijklmnop"}, "rows.jsonl": jsonl(*rows)}
    after = {**before, "0.txt": "new", "sub/c2.txt": "new", "rows.jsonl": jsonl(*rows, {"text": "new"})}
    one, two = str(folder(before, "one")), str(folder(after, "moved/two"))
    beside = str(folder({"beside.txt": "beside"}, "three"))
    splits = [{d.text: d.split(0.3) for d in Documents(sources.files(source))} for source in (one, two, (beside, one))]
    for later in splits[1:]:
        assert {text: later[text] for text in splits[0]} == splits[0]
    assert set(splits[0].values()) == {"train", "held_out"}
