"""The text task against brute force on corpora of a few hundred tokens.

Where the text repeats itself, a row does not tell where it comes from. So a task is also asked for its rows of a corpus in which
every token is its own place (`marked`).
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from seqzoo import data
from seqzoo.tasks import BatchSpec, create, registry, text
from seqzoo.tasks.text import Text

WORDS = "the quick brown fox jumps over the lazy dog".split()
FILES = {f"{number:02d}.txt": " ".join(WORDS[: number % 9]) for number in range(40)}  # some are empty, lengths repeat
SEPARATOR = 256
COLUMNS = ("tokens", "targets", "segment_ids", "positions", "weights")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    top = tmp_path_factory.mktemp("source")
    for name, words in FILES.items():
        (top / name).write_text(words)
    return str(top)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    data.prepare(source, out, held_out=0.2, shard_tokens=100)
    return str(out)


@pytest.fixture(params=["memory", "shards"])
def corpus(request, source, prepared):
    """Settings of the same corpus in memory, and in shards whose borders lie within rows."""
    return {"source": source, "held_out": 0.2} if request.param == "memory" else {"source": prepared}


class Places:
    """Tokens that are their own places."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, where):
        return np.arange(where.start, where.stop)


def marked(task):
    """The same task on a corpus in which every token is its own place."""
    splits = {}
    for name, split in task.corpus.splits.items():
        starts = split.starts
        splits[name] = data.Split(
            Places(len(split.tokens)), lambda starts=starts: starts, len(starts), split.text_bytes, split.sha256
        )
    probe = Text(**{field: getattr(task, field) for field in Text.model_fields})
    probe.__dict__["corpus"] = data.Corpus(("marked",), splits, -1, "", {}, 0)
    return probe


def tokens(task, split):
    stream = task.corpus.splits[split].tokens
    return stream[0 : len(stream)].tolist()


def batch(task, index, spec=None):
    spec = spec or task.spec(index)
    found = task.rows(spec, index, slice(None))
    assert tuple(found) == COLUMNS
    assert all(array.shape == (spec.batch, spec.length) for array in found.values())
    assert [str(array.dtype) for array in found.values()] == ["int32"] * 4 + ["float32"]
    return found


def steps(task):
    """Batches of an epoch, by the definition of the skipped tokens."""
    targets = len(tokens(task, "train")) - 1
    return targets // (task.batch_size * task.length) if task.stream else targets // task.length // task.batch_size


def check_against_own_tokens(row):
    """Targets, segments and positions of a row {column: [t]} against its tokens."""
    assert row["targets"][:-1].tolist() == row["tokens"][1:].tolist()
    begins = row["tokens"] == SEPARATOR
    for i in range(1, len(begins)):
        if begins[i]:
            assert row["segment_ids"][i] != row["segment_ids"][i - 1] and row["positions"][i] == 0
        else:
            assert row["segment_ids"][i] == row["segment_ids"][i - 1] and row["positions"][i] == row["positions"][i - 1] + 1
    assert np.all(row["segment_ids"] > 0) and np.all(row["weights"] == 1)


def rows(found):
    return [{name: array[row] for name, array in found.items()} for row in range(len(found["tokens"]))]


@pytest.mark.parametrize(("length", "batch_size"), [(16, 1), (7, 2), (50, 3), (1, 5)])
@pytest.mark.parametrize("positions", ["window", "document"])
def test_an_epoch_of_windows_predicts_every_token_once_except_less_than_a_batch(corpus, length, batch_size, positions):
    task = Text(**corpus, length=length, batch_size=batch_size, positions=positions)
    probe, ring, starts = marked(task), tokens(task, "train")[:-1], task.corpus.splits["train"].starts
    orders = []
    for epoch in range(3):
        seen, begins = [], []
        for index in range(epoch * steps(task), (epoch + 1) * steps(task)):
            for row, where in zip(rows(batch(task, index)), batch(probe, index)["tokens"] % len(ring), strict=True):
                assert where.tolist() == [(where[0] + i) % len(ring) for i in range(length)]
                assert row["tokens"].tolist() == [ring[i] for i in where]
                assert row["targets"].tolist() == [ring[(i + 1) % len(ring)] for i in where]
                assert row["segment_ids"].tolist() == [1 + sum(row["tokens"][1 : i + 1] == SEPARATOR) for i in range(length)]
                begun = where[0] - max(start for start in starts if start <= where[0])
                assert row["positions"][0] == (begun if positions == "document" else 0)
                check_against_own_tokens(row)
                seen += where.tolist()
                begins.append(int(where[0]))
        assert len(seen) == len(set(seen)) == steps(task) * length * batch_size
        assert len(ring) - len(seen) < length * batch_size
        follows = [(b - a) % len(ring) == length for a, b in itertools.pairwise(begins)]
        assert sum(follows) < len(follows) / 2 or len(follows) < 9, "rows come in the order of the text"
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    assert length == 1 or len({seen[0] % length for seen in orders}) > 1, "every epoch is cut at the same places"


@pytest.mark.parametrize(("length", "batch_size"), [(16, 1), (7, 2), (50, 3), (1, 5)])
def test_the_rows_of_a_stream_joined_over_time_are_its_documents(corpus, length, batch_size):
    task = Text(**corpus, length=length, batch_size=batch_size, stream=True)
    split = task.corpus.splits["train"]
    probe, flat, starts = marked(task), tokens(task, "train"), split.starts
    documents = {int(start): list(range(start, end)) for start, end in zip(starts, [*starts[1:], len(flat) - 1], strict=True)}
    epochs, lanes = [], [[] for _ in range(batch_size)]
    for epoch in range(3):
        joined = {lane: [] for lane in range(batch_size)}
        for index in range(epoch * steps(task), (epoch + 1) * steps(task)):
            found, places = batch(task, index), batch(probe, index)
            for lane, (row, where) in enumerate(zip(rows(found), rows(places), strict=True)):
                assert row["tokens"].tolist() == [flat[i] for i in where["tokens"]]
                assert row["targets"].tolist() == [flat[i] for i in where["targets"]]
                own = starts[np.searchsorted(starts, where["tokens"], side="right") - 1]
                np.testing.assert_array_equal(row["positions"], where["tokens"] - own)
                check_against_own_tokens(row)
                joined[lane] += where["tokens"].tolist()
                lanes[lane] += zip(itertools.repeat(epoch), own.tolist(), row["segment_ids"].tolist())
        whole = list(itertools.chain(*joined.values()))
        order, rest = [], whole
        while rest:  # whole documents one after the other, and the last one cut
            order.append(rest[0])
            document = documents[rest[0]]
            assert rest[: len(document)] == document[: len(rest)]
            rest = rest[len(document) :]
        assert len(order) == len(set(order)) and len(whole) == steps(task) * length * batch_size
        assert len(flat) - 1 - len(whole) < length * batch_size
        epochs.append(order)
    assert epochs[0] != epochs[1] != epochs[2]
    for lane in lanes:
        for (epoch, start, segment), (then, following, other) in itertools.pairwise(lane):
            assert (segment == other) == ((epoch, start) == (then, following))


def test_a_document_that_ends_an_epoch_and_begins_the_next_is_two(tmp_path):
    (tmp_path / "only.txt").write_text("x" * 9)
    task = Text(source=str(tmp_path), held_out=0.0, length=5, batch_size=1, stream=True)
    segments = [batch(task, index)["segment_ids"][0].tolist() for index in range(6)]
    assert all(len(set(row)) == 1 for row in segments)
    assert segments[0] == segments[1] != segments[2] == segments[3] != segments[4] == segments[5]


@pytest.mark.parametrize("stream", [False, True])
def test_rows_are_a_pure_function_of_settings_and_index(corpus, stream):
    settings = {**corpus, "length": 9, "batch_size": 4, "stream": stream}
    task = Text(**settings)
    wanted = [batch(task, index) for index in range(4 * steps(task))]
    text._laid.cache_clear()
    for cached in (data.corpus._open, data.corpus._read):
        cached.cache_clear()
    for index in (np.int64(3 * steps(task) + 1), 2, steps(task), steps(task) - 1, 0):
        fresh = Text(**settings)
        for name, array in batch(fresh, index).items():
            np.testing.assert_array_equal(array, wanted[index][name])
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda index: batch(task, index), reversed(range(len(wanted)))))[::-1]
    assert all(np.array_equal(found[i][name], wanted[i][name]) for i in range(len(wanted)) for name in COLUMNS)
    other = Text(**settings, seed=1)
    assert any(not np.array_equal(batch(other, i)["tokens"], wanted[i]["tokens"]) for i in range(steps(task)))


@pytest.mark.parametrize("stream", [False, True])
def test_some_rows_are_those_rows_of_the_whole_batch(corpus, stream):
    task = Text(**corpus, length=9, batch_size=6, stream=stream)
    for spec in (task.spec(0), task.eval_sets()[0].spec):
        whole = batch(task, 1, spec)
        for chosen in (slice(0, 2), slice(2, 6), slice(5, 6), slice(None, None, 2), slice(3, 3)):
            for name, array in task.rows(spec, 1, chosen).items():
                np.testing.assert_array_equal(array, whole[name][chosen])


def test_memory_and_shards_give_the_same_rows(source, prepared):
    for stream in (False, True):
        one, other = (Text(source=where, length=9, stream=stream, held_out=0.2) for where in (source, prepared))
        for index in range(2 * steps(one)):
            for name, array in batch(one, index).items():
                np.testing.assert_array_equal(array, batch(other, index)[name])


@pytest.mark.parametrize("bound", [None, 1, 100, 130, 10**6])
def test_evaluation_predicts_held_out_tokens_once_in_order_and_the_same_at_every_length(corpus, bound):
    lengths = (1, 5, 16, 48)
    task = Text(**corpus, length=8, eval_lengths=lengths, eval_batch_size=3, eval_tokens=bound, positions="document")
    probe, held = marked(task), tokens(task, "held_out")
    targets, longest = len(held) - 1, max(lengths)
    assert [part.name for part in task.eval_sets()] == [f"held-out length={length}" for length in lengths]
    scored = []
    for part in task.eval_sets():
        assert (part.chance, part.settings, part.spec.batch) == (None, {"length": part.spec.length}, 3)
        assert part.bytes_per_target * targets == pytest.approx(task.describe()["held_out"]["bytes"])
        places = []
        for index in range(part.batches):
            before = len(places)
            found, where = batch(task, index, part.spec), batch(probe, index, part.spec)
            for row, place in zip(rows(found), rows(where), strict=True):
                count = int(row["weights"].sum())
                assert all(not np.any(column[count:]) for column in row.values()), "padding stands at the end of a row"
                row, place = ({name: column[:count] for name, column in one.items()} for one in (row, place))
                check_against_own_tokens(row)
                starts = task.corpus.splits["held_out"].starts
                own = starts[np.searchsorted(starts, place["tokens"], side="right") - 1]
                np.testing.assert_array_equal(row["positions"], place["tokens"] - own)
                assert row["tokens"].tolist() == [held[i] for i in place["tokens"]]
                assert row["targets"].tolist() == [held[i + 1] for i in place["tokens"]]
                places += place["tokens"].tolist()
            assert len(places) > before, "a batch of padding only"
        scored.append(places)
    assert all(places == scored[0] for places in scored)
    if bound is None or bound > targets:
        assert scored[0] == list(range(targets)) and not any("evaluation" in note for note in task.notes())
        return
    count = -(-bound // longest)
    begins = [scored[0][i] for i in range(0, len(scored[0]), longest)]
    assert scored[0] == [begin + i for begin in begins for i in range(longest)] and len(begins) == count
    gaps = np.diff([*begins, targets]) if count == 1 else np.diff(begins)
    assert begins[0] == 0 and np.ptp(gaps) <= 1 and (count == 1 or begins[-1] + longest == targets)
    assert f"evaluation is on {count * longest} of {targets} held-out tokens" in task.notes()[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_held_out_documents_are_in_no_training_batch(tmp_path, stream):
    for byte in range(200):  # a file is known by its byte
        (tmp_path / f"{byte}.txt").write_bytes(bytes([byte + 1]) * 10)
    task = Text(source=f"{tmp_path}/*.txt", held_out=0.3, length=10, batch_size=4, eval_tokens=None, stream=stream)
    seen = {int(byte) for index in range(3 * steps(task)) for byte in np.unique(batch(task, index)["tokens"])}
    (part,) = task.eval_sets()
    held = {int(byte) for index in range(part.batches) for byte in np.unique(batch(task, index, part.spec)["tokens"])}
    assert seen & held <= {SEPARATOR} and (seen | held) - {0} == {*range(1, 201), SEPARATOR} and len(held) > 20


def test_skipped_tokens_and_files_are_reported(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("nine byte")
    (tmp_path / "a.bin").write_bytes(b"\0")
    task = Text(source=str(tmp_path), held_out=0.25, length=7, batch_size=4, eval_tokens=11)
    train, held = (10 * task.describe()[split]["documents"] for split in ("train", "held_out"))
    left = train - train // 7 // 4 * 28
    assert task.notes() == (
        f"text: binary files of {tmp_path} skipped: 1",
        f"text: {left} of {train} training tokens do not fill a batch of 4 rows of 7 and are skipped, different ones in each epoch",
        f"text: evaluation is on 14 of {held} held-out tokens, spread evenly (eval_tokens)",
    )
    (tmp_path / "a.bin").unlink()
    assert Text(source=str(tmp_path), held_out=0.25, length=10, batch_size=1, eval_tokens=None).notes() == ()


def test_vocabulary_tokenizer_and_settings_are_known_without_reading_the_corpus(corpus, monkeypatch):
    def read(*_, **__):
        raise AssertionError("the corpus was read")

    monkeypatch.setattr(data, "load", read)
    task = Text(**corpus, length=8, eval_lengths=[32, 16])
    assert (task.vocab_size, task.tokenizer.decode([104, 105, 256]), task.max_length) == (257, b"hi", 32)
    assert (task.on_host, task.stateful, Text(**corpus, stream=True).stateful) == (True, False, True)
    assert task.spec(7) == BatchSpec("train", 0, 8, 8)
    with pytest.raises(AssertionError):
        task.eval_sets()


def test_positions_in_documents_need_as_many_as_the_longest_has(corpus):
    longest = 1 + max(map(len, FILES.values()))
    assert Text(**corpus, length=8, positions="document").max_length == Text(**corpus, length=8, stream=True).max_length == longest
    assert Text(**corpus, length=longest + 1, stream=True).max_length == longest + 1


def test_tasks_of_one_source_share_the_corpus_and_its_record(source):
    one, other = Text(source=source, held_out=0.2), create(f"text(source={source!r}, held_out=0.2, length=8, stream=True)")
    assert one.corpus is other.corpus
    assert one.fingerprint().keys() == {*FILES, "tokenizer"} and all(v.startswith("sha256:") for v in one.fingerprint().values())
    assert {tuple(record) for record in one.describe().values()} == {("source", "documents", "tokens", "bytes", "sha256")}
    assert one.bytes_per_target == one.describe()["train"]["bytes"] / (one.describe()["train"]["tokens"] - 1)


def test_a_spec_string_with_several_sources_parses_and_writes_itself_back(source):
    spec = f"text(source=({source + '/01.txt'!r}, {source + '/02.txt'!r}), eval_lengths=(8, 16), held_out=0.0)"
    assert create(registry.check(spec)) == create(str(registry.check(spec))) == create(spec)
    assert create(spec).eval_sets() == ()


def test_the_standard_library_is_the_default():
    task = Text()
    record = task.describe()
    assert record["train"]["bytes"] > 3e6 and 0.01 < record["held_out"]["bytes"] / record["train"]["bytes"] < 0.15
    found = batch(task, 10**6)
    for row in rows(found):
        check_against_own_tokens(row)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "length=0, wanted int in"),
        ({"batch_size": True}, "batch_size=True, wanted int in"),
        ({"eval_batch_size": 0}, "eval_batch_size=0, wanted int in"),
        ({"eval_tokens": 1.5}, "eval_tokens=1.5, wanted int in"),
        ({"eval_lengths": (8, 8)}, r"eval_lengths=\(8, 8\), wanted at least one length, and each once"),
        ({"eval_lengths": ()}, "wanted at least one length"),
        ({"stream": 1}, "stream=1, wanted True or False"),
        ({"verify": None}, "verify=None, wanted True or False"),
        ({"seed": -1}, r"seed=-1, wanted int in \[0"),
        ({"positions": "row"}, "positions='row', wanted 'window' or 'document' or None"),
        (
            {"positions": "window", "stream": True},
            r"positions='window', wanted 'document' \(the only one for stream=True\), or None",
        ),
        ({"field": ""}, "field='', wanted text or None"),
        ({"held_out": 1}, r"held_out=1, wanted number in \[0, 1\)"),
        ({"source": ""}, "source='', wanted 'stdlib', a folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_task_is_made(settings, says):
    with pytest.raises(ValueError, match=says):
        Text(**settings)


def test_a_source_that_does_not_exist_is_refused_when_it_is_needed():
    task = Text(source="stdlb")
    for need in (lambda: task.vocab_size, lambda: task.tokenizer, lambda: task.corpus):
        with pytest.raises(data.DataError, match=r"no file or folder 'stdlb'. Did you mean 'stdlib'\?"):
            need()


def test_a_batch_that_is_larger_than_the_corpus_is_refused(corpus):
    for stream in (False, True):
        task = Text(**corpus, length=1000, batch_size=3, stream=stream)
        with pytest.raises(
            ValueError, match=r"has [\d,]+ tokens, a batch of batch_size=3 rows of length=1000 has 3,000; wanted smaller"
        ):
            task.check()


def test_a_prepared_corpus_keeps_its_settings(prepared):
    with pytest.raises(ValueError, match=r"held_out=0.05, but .* was prepared with 0.2"):
        Text(source=prepared, held_out=0.05).check()
