"""MQAR, 64 tokens, 8 pairs in training and 2 to 16 in evaluation: six mixers at equal steps.

    python train.py

`train.py` runs this comparison when it gets no config. seqzoo/cli/quickstart.py is a link to this file, for installed packages.

2 CPU cores, jax 0.10.2, 2026-12-01: 3 min 17 s. Accuracy on 8 pairs, chance 0.008: softmax 1.000, sigmoid 0.138, GLA 0.119, Mamba
0.088, Mamba-2 0.100, Aaren 0.136. Recorded in docs/results/quickstart.json; other seeds of softmax and Aaren in
docs/results/quickstart_seeds.json.
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Training

# Each has about 70,000 parameters with these settings. Attention is without rotary positions: all six get the same learned ones,
# with which the step from token to token is found sooner.
MIXERS = (
    "softmax(heads=2, rope_theta=None)",
    "sigmoid(heads=2, length=64, rope_theta=None)",
    "gla(heads=2)",
    "mamba(expand=1)",
    "mamba2(expand=1, head_dim=32, state=16)",
    "aaren(heads=2)",
)

config = Comparison(
    base=Experiment(
        model=Model(d_model=64, depth=2, channel="none", tie_embeddings=False, learned_positions=64),
        task="mqar(vocab_size=256, length=64, pairs=8, eval_pairs=(2, 4, 8, 16), batch_size=64, eval_examples=256)",
        optimizer=Optimizer(learning_rate=5e-3),
        training=Training(steps=500, eval_every=125, checkpoint_every=500, log_every=25, keep=1),
    ),
    axes={"model.layers": MIXERS},
)
