"""Imported models against flash-linear-attention's own, which run their chunk kernels on rows of more than 64 tokens."""

import numpy as np
import pytest

from helpers.tolerances import assert_close

from ..models import greedy, tokens
from .architectures import ARCHITECTURES, MARKS, bar, pair

pytestmark = MARKS


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request, torch, fla, tmp_path_factory):
    return pair(torch, fla, request.param, tmp_path_factory.mktemp(request.param))


def test_logits_equal_those_of_the_other_project(torch, models):
    prompt = tokens(2, 70)
    assert_close(models.ours(prompt)[0], models.logits(torch, prompt), tolerance=bar(models))


def test_greedy_tokens_equal_those_of_the_other_project(torch, models):
    """Ours by prefill and single steps; theirs by full passes, across the 64 tokens up to which they run another kernel."""
    prompt = row = tokens(1, 62, seed=1)
    for _ in range(5):
        row = np.concatenate([row, models.logits(torch, row)[:, -1:].argmax(-1)], axis=1)
    np.testing.assert_array_equal(greedy(models.ours, prompt, 5), row[:, 62:])


def test_packed_documents_equal_those_of_the_other_project(torch, models):
    ends = [0, 1, 31, 40, 75]
    row = tokens(1, ends[-1], seed=2)
    ids = np.repeat(np.arange(1, len(ends), dtype=np.int32), np.diff(ends))[None]
    theirs = models.logits(torch, row, cu_seqlens=torch.tensor(ends))
    assert_close(models.ours(row, segment_ids=ids)[0], theirs, tolerance=bar(models))
