"""A byte-level language model of about a million parameters, trained on the source files of Python's standard library.

python train.py configs/lm_bytes.py
"""

from seqzoo.config import Experiment, Model, Optimizer, Run, Training

config = Experiment(
    model=Model(layers=("gated_deltanet(heads=2, expand_k=0.5, expand_v=1)",), depth=5, d_model=128),
    task="text(source='stdlib', length=512, batch_size=8, eval_tokens=131072)",
    optimizer=Optimizer(learning_rate=4e-3, warmup_steps=100),
    training=Training(steps=1000, eval_every=250, checkpoint_every=250, log_every=25, loss_chunk=128),
    run=Run(name="lm-bytes"),
)
