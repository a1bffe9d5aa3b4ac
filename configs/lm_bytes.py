"""A byte-level language model of a million parameters, trained on the source files of the running Python's standard library.

python train.py configs/lm_bytes.py                              # then: python train.py generate runs/lm-bytes --prompt "import "

Every held-out file is scored, in windows of 512 bytes: bits per byte are comparable with `gzip -9` of the same files.
"""

from seqzoo.config import Experiment, Model, Optimizer, Run, Training

config = Experiment(
    model=Model(layers=("gla(heads=2)", "gla(heads=2)", "softmax(heads=2)"), depth=5, d_model=128),
    task="text(source='stdlib', length=512, batch_size=8, eval_tokens=None, eval_batch_size=16)",
    optimizer=Optimizer(learning_rate=4e-3, schedule="cosine(warmup_steps=100)"),
    training=Training(steps=2000, eval_every=500, checkpoint_every=500, log_every=25, loss_chunk=128),
    run=Run(name="lm-bytes"),
)
