"""Norms by module: which numbers stand where, in metrics.jsonl and its copies."""

import math

import jax
import numpy as np
from tiny import quiet, tiny

from seqzoo import training
from seqzoo.training import metrics, sinks


def norm(*trees):
    return math.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(trees)))


def test_every_module_of_every_layer_has_its_norms_in_the_metrics(tmp_path):
    """Layers 0 to 3 are run by a scan of two periods, layer 4 by itself."""
    values = dict(model__layers=("softmax(heads=2)", "linear(heads=2)"), model__depth=5, model__channel="gelu", model__tied=False)
    experiment = tiny(**values, training__steps=1, training__watch=True)
    training.run(experiment, tmp_path / "run", console=quiet())
    line = next(line for line in metrics.read(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train")

    first = training.initialise(training.prepare(experiment))["params"]
    periods, rest = first["stack"]["periods"], first["stack"]["rest"]
    take = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
    layers = [take(periods[name], index) for index in (0, 1) for name in ("0_softmax", "1_linear")] + [rest["0_softmax"]]
    parts = ("mixer", "mixer_norm", "channel", "channel_norm")
    wanted = {f"layers/{i}/{part}": norm(layer[part]) for i, layer in enumerate(layers) for part in parts}
    wanted |= {name: norm(first[name]) for name in ("embedding", "norm", "head")}

    found = metrics.flat(line["parameter_norms"])
    assert found.keys() == wanted.keys() == metrics.flat(line["gradient_norms"]).keys()
    np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), rtol=1e-6)
    np.testing.assert_allclose(norm(line["gradient_norms"]), line["gradient_norm"], rtol=1e-5)
    assert sinks.scalars(line)["train/parameter_norms/layers/4/mixer"] == found["layers/4/mixer"]
