"""MQAR, 64 tokens, 8 pairs in training, 4 to 16 in evaluation: nine mixers at equal recurrent memory, behind the same convolution.

    python train.py

`train.py` runs this comparison when it gets no config. seqzoo/cli/quickstart.py is a link to this file, for installed packages.

Every recurrent mixer but Aaren has 4 KiB of recurrent memory; those with matrices have one head of 32 x 32. The settings are solved
for (docs/comparing.md). Softmax and sigmoid attention keep all keys and values, Aaren one weighted mean of them. A run ends when it
has solved the task, or after 500 steps. The learning rate is 1e-2, and 5e-3 for sigmoid and Gated DeltaNet, of which some seeds
stay at guessing with 1e-2.
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Training

# Attention is without positions: the convolution tells it which token came before.
MIXERS = (
    "softmax(heads=1, rope_theta=None)",
    "sigmoid(heads=1, length=64, rope_theta=None)",
    "linear",
    "gla",
    "gated_deltanet",
    "rwkv7",
    "mamba2",
    "mamba(expand=1)",
    "aaren(heads=1)",
)
SLOWER = {"sigmoid": 5e-3, "gated_deltanet": 5e-3}


def settings(mixer: str) -> dict:
    """The model and the learning rate of a mixer."""
    rate = next((rate for name, rate in SLOWER.items() if mixer.startswith(name)), 1e-2)
    return {"model.layers": ("base_conv", mixer), "optimizer.learning_rate": rate}


config = Comparison(
    base=Experiment(
        model=Model(d_model=64, depth=2, channel="none", tie_embeddings=False),
        task="mqar(vocab_size=128, length=64, pairs=8, eval_pairs=(4, 8, 16), batch_size=64, eval_examples=256)",
        optimizer=Optimizer(learning_rate=1e-2),
        training=Training(steps=500, eval_every=50, checkpoint_every=500, log_every=50, keep=1, stop_above=0.98),
    ),
    axes={"mixer": {mixer.split("(")[0]: settings(mixer) for mixer in MIXERS}},
    match="state_bytes",
    budget=4096,
    shapes=1,
)
