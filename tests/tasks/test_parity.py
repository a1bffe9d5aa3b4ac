"""The parity task against counting."""

import jax
import numpy as np
import pytest

from seqzoo.tasks import create


def batch(task, spec, index):
    return jax.tree.map(np.asarray, jax.jit(task.batch, static_argnums=0)(spec, index))


def test_a_target_is_the_parity_of_the_bits_so_far():
    task = create("parity(length=13, batch_size=5)")
    drawn = batch(task, task.spec(0), 7)
    for tokens, targets in zip(drawn["tokens"], drawn["targets"], strict=True):
        assert [sum(tokens[: i + 1]) % 2 for i in range(13)] == list(targets)
    assert np.all(drawn["weights"] == 1)


def test_the_last_token_alone_is_scored_in_evaluation_and_where_prefixes_are_not():
    task = create("parity(length=13, eval_length=(20, 40), prefixes=False, batch_size=4, eval_examples=6)")
    assert [(s.name, s.batches, s.chance) for s in task.eval_sets()] == [("length=20", 2, 0.5), ("length=40", 2, 0.5)]
    assert task.max_length == 40
    last = np.arange(13) == 12
    np.testing.assert_array_equal(batch(task, task.spec(0), 0)["weights"], np.tile(last, (4, 1)))
    scored = [batch(task, task.eval_sets()[0].spec, i)["weights"] for i in range(2)]
    assert [w[:, -1].sum() for w in scored] == [4, 2] and all(w[:, :-1].sum() == 0 for w in scored)


def test_bits_are_fair_and_batches_differ_by_step_split_and_seed():
    task = create("parity(length=64, eval_length=64, batch_size=64)")
    drawn = [batch(task, task.spec(0), i)["tokens"] for i in range(3)]
    drawn += [
        batch(task, task.eval_sets()[0].spec, 0)["tokens"],
        batch(task, task.test_sets()[0].spec, 0)["tokens"],
        batch(create("parity(length=64, seed=1)"), task.spec(0), 0)["tokens"],
    ]
    for i, one in enumerate(drawn):
        assert abs(one.mean() - 0.5) < 0.03  # four standard deviations
        assert all(np.mean(one != other) > 0.4 for other in drawn[:i])
    np.testing.assert_array_equal(drawn[1], batch(task, task.spec(1), 1)["tokens"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("parity(length=0)", "length=0, wanted int in"),
        ("parity(eval_length=(40, 40))", "wanted at least one length, and each once"),
        ("parity(eval_length=())", "wanted at least one length"),
        ("parity(seed=-1)", r"seed=-1, wanted int in \[0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        create(spec)
