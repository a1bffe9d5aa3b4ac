"""MQAR, one mixer: recall of 8 pairs in 64 tokens, evaluated at 2, 4, 8 and 16 pairs.

    python train.py configs/mqar.py
    python train.py configs/mqar.py --model.layers "gla(heads=2)" --optimizer.learning-rate 3e-3

Chance is 1/128 = 0.008.
"""

from seqzoo.config import Experiment, Model, Optimizer, Training

config = Experiment(
    model=Model(
        layers=("softmax(heads=2, rope_theta=None)",),
        d_model=64,
        depth=2,
        channel="none",
        tie_embeddings=False,
        learned_positions=64,
    ),
    task="mqar(vocab_size=256, length=64, pairs=8, eval_pairs=(2, 4, 8, 16), batch_size=64, eval_examples=512)",
    optimizer=Optimizer(learning_rate=5e-3),
    training=Training(steps=500, eval_every=100, checkpoint_every=250, log_every=25),
)
