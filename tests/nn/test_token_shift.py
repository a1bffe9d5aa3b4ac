"""The token before: of the same document, over padding, and across calls."""

import numpy as np
import pytest

from seqzoo.nn import token_shift

IDS = np.array([[0, 5, 5, 0, 0, 5, 2, 0, 2, 5, 5, 0], [1, 1, 3, 3, 0, 0, 0, 3, 3, 4, 0, 4]], np.int32)
CARRIED = np.array([5, 3], np.int32)  # row 0 continues the tail's document, row 1 does not
X = np.random.default_rng(0).standard_normal((*IDS.shape, 3)).astype(np.float32)
TAIL = np.random.default_rng(1).standard_normal((2, 1, 3)).astype(np.float32)


def read_aloud(x, ids, tail, segment):
    out = np.zeros_like(x)
    for row in range(len(x)):
        before, document = tail[row, 0], segment[row]
        for t in range(x.shape[1]):
            if ids[row, t] == 0:
                continue
            out[row, t] = before if document in (0, ids[row, t]) else 0
            before, document = x[row, t], ids[row, t]
        tail[row, 0] = before
    return out, tail


def test_it_is_the_last_real_token_of_the_document():
    shifted, tail = token_shift(X, tail=TAIL, segment=CARRIED, segment_ids=IDS)
    wanted, last = read_aloud(X, IDS, TAIL.copy(), CARRIED)
    np.testing.assert_array_equal(shifted, wanted)
    np.testing.assert_array_equal(tail, last)


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_calls_one_after_the_other_give_the_whole(cut):
    first, tail = token_shift(X[:, :cut], tail=TAIL, segment=CARRIED, segment_ids=IDS[:, :cut])
    segment = [row[row != 0][-1] if row.any() else old for row, old in zip(IDS[:, :cut], CARRIED, strict=True)]
    rest, tail = token_shift(X[:, cut:], tail=tail, segment=np.array(segment, np.int32), segment_ids=IDS[:, cut:])
    wanted, last = token_shift(X, tail=TAIL, segment=CARRIED, segment_ids=IDS)
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1), wanted)
    np.testing.assert_array_equal(tail, last)


def test_without_ids_or_tail_the_first_token_has_nothing_before_it():
    shifted, tail = token_shift(X)
    np.testing.assert_array_equal(shifted[:, 1:], X[:, :-1])
    assert not np.any(shifted[:, 0])
    np.testing.assert_array_equal(tail[:, 0], X[:, -1])
