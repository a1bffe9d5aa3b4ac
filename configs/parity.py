"""State tracking: parity at 256 bits after training at 40, with beta in (0, 1) and in (0, 2), three seeds each.

python train.py configs/parity.py
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Training

FORMS = ("deltanet(heads=1, conv_size=1)", "deltanet(heads=1, conv_size=1, negative_eigenvalues=True)")

config = Comparison(
    base=Experiment(
        model=Model(d_model=32, depth=1, channel="gelu", tie_embeddings=False),
        task="parity(length=40, eval_length=(40, 256), batch_size=64, eval_examples=512)",
        optimizer=Optimizer(rule="adamw(weight_decay=0.0)", learning_rate=1e-2),
        training=Training(steps=1000, eval_every=250, checkpoint_every=1000, log_every=50, keep=1),
    ),
    axes={"model.layers": FORMS, "training.seed": (0, 1, 2)},
)
