"""The snippets of docs/one_layer.md, run in order as one program, and the results that the page describes."""

import re
from pathlib import Path

import numpy as np
import pytest

from helpers.tolerances import assert_close

PAGE = Path(__file__).parents[1] / "docs" / "one_layer.md"


@pytest.fixture(scope="module")
def page():
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)), names)
    return names


def test_the_nnx_model_trains(page):
    assert page["losses"][-1] < 0.7 * page["losses"][0]


def test_prefill_and_single_steps_give_the_whole(page):
    assert_close(page["pieces"], page["whole"])


def test_a_packed_document_gives_what_it_gives_alone(page):
    assert_close(page["packed"][:, 5:9], page["alone"])


def test_on_a_mesh_the_layer_gives_what_it_gives_without(page):
    assert_close(page["y"], page["layer"](page["jnp"].ones((1, 64, 32)))[0])
    said = page["explain"](page["layer"], page["jnp"].ones((1, 64, 32)))
    assert said[-1] == "linear_attention: not sharded", "the page's mesh must not outlive its block"


def test_the_linen_model_carries_a_state(page):
    assert_close(page["linen_first"], page["linen_whole"][:, :7])


def test_the_op_is_the_recurrence(page):
    np.testing.assert_allclose(page["h"][0, :, 0], (1 - 0.9 ** np.arange(1, 101)) / 0.1, rtol=1e-5)
