"""Twelve mixers as byte-level language models: equal parameters, equal tokens, the same held-out text; ranked by bits per byte.

python train.py configs/lm_mixers.py                           # 24 runs: an hour or two on two CPU cores; docs/language_models.md

Each has 824,576 parameters to within 0.1 %: the width of the channel mixer makes up for the size of the mixer.
Each reads the same million bytes of the standard library in the same order, at two learning rates.
"""

from seqzoo.config import Comparison, Experiment, Model, Run, Training

# Mixer: hidden width of the SwiGLU in the same block.
MIXERS = {
    "softmax(heads=2)": 344,
    "linear(heads=2)": 344,
    "retnet(heads=2)": 173,
    "gla(heads=2)": 336,
    "hgrn2(heads=2)": 343,
    "mlstm(heads=2)": 342,
    "mamba2": 165,
    "deltanet(heads=2)": 339,
    "gated_deltanet(heads=2)": 253,
    "kda(heads=2)": 253,
    "rwkv7(heads=2)": 233,
    "rg_lru": 362,
}

config = Comparison(
    base=Experiment(
        model=Model(d_model=128, depth=4),
        task="text(source='stdlib', length=512, batch_size=8, eval_batch_size=16, eval_tokens=131072)",
        training=Training(steps=256, eval_every=64, checkpoint_every=256, log_every=25, loss_chunk=128, keep=1),
        run=Run(name="lm-mixers"),
    ),
    axes={
        "mixer": {
            mixer: {"model.layers": (mixer,), "model.channel": f"swiglu(hidden={hidden})"} for mixer, hidden in MIXERS.items()
        },
        "optimizer.learning_rate": (2e-3, 6e-3),
    },
)
