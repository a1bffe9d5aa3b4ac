"""Call path from `model(tokens)` to the arithmetic of a mixer: at most 12 frames of our code, so that a reader can follow it."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import seqzoo
from seqzoo.model import LanguageModel

MOST = 12
PACKAGE = Path(seqzoo.__file__).parent  # kernels/ is in it, by a link


def our_frames():
    """(file, function) of the callers that are ours, outermost first."""
    frame, found = sys._getframe(2), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.append((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize(
    ("settings", "body"),
    [("", None), ("implementation='chunkwise'", ("kernels/linear_attention/chunkwise.py", "block"))],
    ids=["default", "chunkwise"],
)
def test_the_call_path_from_the_model_to_the_arithmetic_of_gla_has_few_frames(settings, body, monkeypatch):
    """To each matrix product of the default on CPUs; in the chunkwise form to the body of its loop, which computes a block."""
    paths, bind = [], jax.lax.dot_general_p.bind

    def recording_bind(*arguments, **settings):
        paths.append(our_frames())
        return bind(*arguments, **settings)

    model = LanguageModel(32, 40, layers=(f"gla({settings})",), depth=2, rngs=nnx.Rngs(0))
    monkeypatch.setattr(jax.lax.dot_general_p, "bind", recording_bind)
    jax.eval_shape(model, jnp.zeros((3, 107), jnp.int32))  # shapes of no other test: a product traced before is not traced again
    paths = [path for path in paths if any(file.startswith("kernels/linear_attention") for file, _ in path)]
    paths = [path if body is None else path[: path.index(body) + 1] for path in paths]
    assert paths
    for path in paths:
        assert len(path) <= MOST, "\n".join(f"{file}: {function}" for file, function in path)
