"""MQAR against its definition: invariants, a brute-force reader, the published laws of its draws, and addressing by step."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqzoo.specs import SpecError
from seqzoo.tasks import MQAR, create, registry

SPECS = {
    "plain": "mqar(vocab_size=64, length=40, pairs=6)",
    "full": "mqar(vocab_size=40, length=24, pairs=6)",  # as many slots as keys
    "noise": "mqar(vocab_size=64, length=40, pairs=6, noise=True)",
    "passes": "mqar(vocab_size=64, length=40, pairs=4, passes=3)",
    "uniform": "mqar(vocab_size=64, length=40, pairs=2, power=1.0)",
    "fixed": "mqar(vocab_size=64, length=40, pairs=6, examples=100)",
}


@functools.cache
def compiled(task):
    return jax.jit(task.batch, static_argnums=0)


def batch_of(task, spec, index):
    return compiled(task)(spec, index)


@functools.cache
def task_and_batches(spec, steps=2):
    task = create(spec)
    batches = [batch_of(task, task.spec(step), step) for step in range(steps)]
    return task, {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}


def shape_of(task):
    return task.length, task.pairs, 2 * task.pairs * task.passes


@pytest.mark.parametrize("name", SPECS)
def test_shapes_and_dtypes_are_static(name):
    task, batch = task_and_batches(SPECS[name])
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "tokens": ((128, task.length), "int32"),
        "targets": ((128, task.length), "int32"),
        "weights": ((128, task.length), "float32"),
    }


@pytest.mark.parametrize("name", SPECS)
def test_the_invariants_of_the_definition_hold_in_every_example(name):
    task, batch = task_and_batches(SPECS[name])
    length, pairs, context = shape_of(task)
    half = task.vocab_size // 2
    for tokens, targets, weights in zip(batch["tokens"], batch["targets"], batch["weights"], strict=True):
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert np.all((1 <= keys) & (keys < half)) and len(set(keys)) == pairs
        assert np.all((half <= values) & (values < task.vocab_size)) and len(set(values)) == pairs
        assert np.array_equal(tokens[:context], np.tile(tokens[: 2 * pairs], task.passes))
        (queries,) = np.nonzero(weights)
        assert len(queries) == pairs and np.all(weights[queries] == 1)
        assert np.all(queries >= context) and np.all((queries - context) % 2 == 0) and np.all(queries + 1 < length)
        assert sorted(tokens[queries]) == sorted(keys)
        assert np.all(targets[weights == 0] == 0)
        fillers = np.setdiff1d(np.arange(context, length), queries)
        if not task.noise:
            assert np.all(tokens[fillers] == 0)
        assert np.all((0 <= tokens) & (tokens < task.vocab_size))


@pytest.mark.parametrize("name", SPECS)
def test_a_reader_who_looks_each_query_up_in_the_context_is_always_right(name):
    task, batch = task_and_batches(SPECS[name])
    context = shape_of(task)[2]
    for tokens, targets, weights in zip(batch["tokens"], batch["targets"], batch["weights"], strict=True):
        dictionary = {}
        for place in range(0, context, 2):
            dictionary[tokens[place]] = tokens[place + 1]
        for place in range(len(tokens)):
            if weights[place]:
                assert targets[place] == dictionary[tokens[place]]


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_the_slot_of_a_single_query_follows_the_power_law(power):
    task = MQAR(vocab_size=64, length=42, pairs=1, power=power, batch_size=8192)
    batch = batch_of(task, task.spec(0), 0)
    slots = (np.argmax(np.asarray(batch["weights"]), axis=1) - 2) // 2
    weights = np.arange(1, 21) ** (power - 1.0)
    expected = 8192 * weights / weights.sum()
    statistic = np.sum((np.bincount(slots, minlength=20) - expected) ** 2 / expected)
    assert statistic < 52, f"chi-square {statistic:.1f} of 19 degrees of freedom; its upper 1e-4 quantile is 50.8"


def test_earlier_pairs_are_queried_earlier_on_average():
    task = MQAR(vocab_size=64, length=40, pairs=6, batch_size=4096)
    batch = batch_of(task, task.spec(0), 0)
    tokens = np.asarray(batch["tokens"])
    places = [np.mean([np.flatnonzero(row[12:] == row[2 * pair])[0] for row in tokens]) for pair in (0, 5)]
    assert places[0] + 1 < places[1]


def test_as_many_slots_as_keys_fills_every_slot():
    _, batch = task_and_batches(SPECS["full"])
    assert np.all(batch["weights"][:, 12::2] == 1)


def test_keys_and_values_are_uniform_at_every_place():
    task = MQAR(vocab_size=32, length=24, pairs=4, batch_size=8192)
    tokens = np.asarray(batch_of(task, task.spec(0), 0)["tokens"])
    for pair in range(4):
        for place, low, size in ((2 * pair, 1, 15), (2 * pair + 1, 16, 16)):
            counts = np.bincount(tokens[:, place] - low, minlength=size)
            statistic = np.sum((counts - 8192 / size) ** 2) / (8192 / size)
            assert statistic < 50, f"place {place}: chi-square {statistic:.1f} of {size - 1} degrees of freedom"


def test_noise_replaces_fillers_and_nothing_else_by_any_id():
    quiet, noisy = MQAR(vocab_size=32, length=24, pairs=4), MQAR(vocab_size=32, length=24, pairs=4, noise=True)
    a, b = (batch_of(task, task.spec(0), 0) for task in (quiet, noisy))
    fillers = np.asarray(a["tokens"]) == 0
    assert np.array_equal(np.asarray(a["tokens"])[~fillers], np.asarray(b["tokens"])[~fillers])
    assert np.array_equal(a["targets"], b["targets"]) and np.array_equal(a["weights"], b["weights"])
    counts = np.bincount(np.asarray(b["tokens"])[fillers], minlength=32)
    expected = fillers.sum() / 32
    assert np.sum((counts - expected) ** 2) / expected < 80  # 31 degrees of freedom


def test_a_batch_is_a_function_of_seed_and_step_alone():
    def make(seed, step):
        task = create(f"mqar(vocab_size=66, pairs=3, seed={seed})")
        return np.asarray(batch_of(task, task.spec(step), step)["tokens"])

    assert np.array_equal(make(0, 3), make(0, 3))
    assert not np.array_equal(make(0, 3), make(0, 4))
    assert not np.array_equal(make(0, 3), make(1, 3))


def test_a_traced_step_gives_what_a_plain_one_gives():
    task, step = create("mqar(vocab_size=128, pairs=(3, 5), examples=130)"), 5
    traced = batch_of(task, task.spec(step), jnp.int32(step))
    plain = task.batch(task.spec(step), step)
    assert all(np.array_equal(traced[name], plain[name]) for name in plain)


def rows(array):
    return {row.tobytes() for row in np.asarray(array)}


def test_an_epoch_of_fixed_size_data_shows_each_example_once_and_the_next_the_same_ones():
    task = create("mqar(vocab_size=128, pairs=(3, 5), examples=(64, 96), batch_size=32)")
    epochs = []
    for epoch in range(2):
        seen = {0: [], 1: []}
        for step in range(5 * epoch, 5 * epoch + 5):
            spec = task.spec(step)
            seen[spec.segment] += [row.tobytes() for row in np.asarray(batch_of(task, spec, step)["tokens"])]
        assert [len(set(found)) for found in seen.values()] == [len(found) for found in seen.values()] == [64, 96]
        epochs.append(seen)
    assert all(set(epochs[0][s]) == set(epochs[1][s]) and epochs[0][s] != epochs[1][s] for s in (0, 1))
    assert task.notes() == ()


def test_skipped_examples_are_reported():
    (note,) = create("mqar(vocab_size=128, pairs=3, examples=100, batch_size=32)").notes()
    assert "4 of 100" in note and "batch of 32" in note


def test_training_validation_and_test_share_no_example():
    task = create("mqar(vocab_size=128, pairs=3, examples=128, eval_examples=128)")
    (validation,), (test,) = task.eval_sets(), task.test_sets()
    assert test._replace(spec=validation.spec) == validation and test.spec == validation.spec._replace(split="test")
    drawn = [[(task.spec(step), step) for step in range(2)], *([(p.spec, i) for i in range(p.batches)] for p in (validation, test))]
    found = [set().union(*(rows(batch_of(task, *address)["tokens"]) for address in addresses)) for addresses in drawn]
    assert [len(each) for each in found] == [128] * 3 and len(set.union(*found)) == 3 * 128


def test_every_evaluation_set_has_exactly_eval_examples_examples():
    task = create("mqar(vocab_size=256, length=64, pairs=8, eval_pairs=(2, 4), eval_examples=100, eval_batch_size=32)")
    two, four = task.eval_sets()
    assert (two.name, four.name) == ("pairs=2", "pairs=4")
    assert (two.batches, two.spec.length, two.chance) == (4, 64, 1 / 128) and two.settings == {"length": 64, "pairs": 2}
    for held_out in (two, four):
        weights = [np.asarray(batch_of(task, held_out.spec, index)["weights"]) for index in range(4)]
        assert [int(np.sum(w.any(axis=1))) for w in weights] == [32, 32, 32, 4]
        assert sum(w.sum() for w in weights) == 100 * held_out.settings["pairs"]


def test_an_evaluation_set_does_not_depend_on_the_others():
    one = create("mqar(vocab_size=256, pairs=8, eval_pairs=4)")
    many = create("mqar(vocab_size=256, pairs=8, eval_pairs=(2, 4, 8))")
    a, b = batch_of(one, one.eval_sets()[0].spec, 0), batch_of(many, many.eval_sets()[1].spec, 0)
    assert np.array_equal(a["tokens"], b["tokens"])


def test_evaluation_sets_name_the_length_if_lengths_vary():
    task = create("mqar(vocab_size=512, length=(64, 128), pairs=(4, 8), eval_length=(64, 256), eval_pairs=(4, 16))")
    assert [held_out.name for held_out in task.eval_sets()] == ["length=64,pairs=4", "length=256,pairs=16"]
    assert task.max_length == 256
    specs = {task.spec(step) for step in range(20)}
    assert {spec.length for spec in specs} == {64, 128}


def test_weights_divide_the_steps_of_endless_data():
    task = create("mqar(vocab_size=128, pairs=(2, 4), weights=(3, 1))")
    turns = [task.spec(step).segment for step in range(400)]
    assert abs(turns.count(1) - 100) <= 3


def test_settings_survive_json_and_tasks_are_values():
    settings = {"vocab_size": 256, "pairs": [2, 4], "examples": [64, 128]}
    task = MQAR(**json.loads(json.dumps(settings)))
    assert task == create("mqar(vocab_size=256, pairs=(2, 4), examples=(64, 128))") and hash(task) == hash(task)
    assert "mqar" in registry.names()
    with pytest.raises(SpecError, match="Did you mean 'pairs'"):
        create("mqar(pair=3)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 63}, "length=63, wanted an even number"),
        ({"vocab_size": 255}, "vocab_size=255, wanted an even number"),
        ({"vocab_size": 64}, "vocab_size=64, wanted more than length=64"),
        ({"pairs": 17}, "pairs=17 with passes=1 needs 68 tokens"),
        ({"pairs": 8, "passes": 4}, "pairs=8 with passes=4 needs 80 tokens"),
        ({"eval_pairs": 17}, "eval_pairs=17"),
        ({"eval_length": 32}, "eval_length=32 is given without eval_pairs"),
        ({"length": (64, 128), "eval_pairs": 4}, "wanted eval_length too"),
        ({"pairs": 0}, "pairs=0, wanted int in"),
        ({"pairs": ()}, "has 0 values"),
        ({"pairs": (4, 4)}, "wanted each once"),
        ({"pairs": (2, 4), "examples": (100, 100, 100)}, "examples=.* has 3 values"),
        ({"examples": 10}, "examples=10, wanted at least one batch each: batch_size=64"),
        ({"examples": 100, "weights": 2.0}, "not both"),
        ({"pairs": (2, 4), "weights": (1, 0)}, "weights=.*, wanted number > 0"),
        ({"power": 0.0}, "power=0.0, wanted number > 0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_examples": 0}, "eval_examples=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        MQAR(**{"vocab_size": 256, **settings})
