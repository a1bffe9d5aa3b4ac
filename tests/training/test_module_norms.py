"""Norms by module: their values and their names, in a training line and in its copies."""

import math

import jax
import numpy as np

from helpers.tiny import tiny
from seqzoo import training
from seqzoo.training import module_norms
from seqzoo.training.run import metric_writers


def norm(*trees):
    return math.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(trees)))


def test_every_module_of_every_layer_has_its_norms():
    """Layers 0 to 3 are run by a scan over two repeats of the pattern, layer 4 by itself."""
    values = dict(
        model__layers=("softmax(heads=2)", "linear(heads=2)"), model__depth=5, model__channel="gelu", model__tie_embeddings=False
    )
    parameters = training.initialise(training.prepare(tiny(**values)))["params"]
    found = module_norms.by_layer(jax.device_get(jax.jit(module_norms.norms)(parameters)))

    scanned, remainder = parameters["stack"]["scanned"], parameters["stack"]["remainder"]
    take = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
    layers = [take(scanned[name], index) for index in (0, 1) for name in ("0_softmax", "1_linear")] + [remainder["0_softmax"]]
    parts = ("mixer", "mixer_norm", "channel", "channel_norm")
    wanted = {f"layers/{i}/{part}": norm(layer[part]) for i, layer in enumerate(layers) for part in parts}
    wanted |= {name: norm(parameters[name]) for name in ("embedding", "norm", "head")}
    flat = metric_writers.flatten(found)
    assert flat.keys() == wanted.keys()
    np.testing.assert_allclose([flat[name] for name in wanted], list(wanted.values()), rtol=1e-6)
    np.testing.assert_allclose(norm(found), norm(parameters), rtol=1e-6)
    line = {"step": 1, "kind": "train", "parameter_norms": found}
    assert metric_writers.scalars(line) == {f"train/parameter_norms/{name}": number for name, number in flat.items()}
