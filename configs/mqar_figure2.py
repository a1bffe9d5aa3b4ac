"""MQAR as in figure 2 of Zoology (Arora et al. 2023, arXiv:2312.04927): the grid over lengths, widths, mixers and learning rates.

    python train.py configs/mqar_figure2.py --dry-run      # lists it, with parameters, state bytes, steps and tokens
    python train.py configs/mqar_figure2.py                # 320 runs

The best of four learning rates is reported. As published: data, batch sizes, widths, learning rates, at most 64 epochs, ending
early above 0.99, AdamW without warm-up and clipping, decay 0.1 on all parameters, dropout 0.1 on embedding and attention weights,
tied embeddings, no channel mixer, learned positions for attention only. Both rules of depth are here: the figure's (4 layers,
attention 2) and that of the released configs since 2024-05 (2 for all). Chance is 1/4096.

Not as published: the cosine schedule changes per step, not per epoch; initial values are those of this repository; and the released
blocks add a normalised copy of the residual stream to itself where a channel mixer would be, which these do not. Of the figure's
seven mixers Hyena, RWKV, H3 and BaseConv with filters as long as the row are missing; `based` has BaseConv with a kernel of three
tokens in every other layer.

No cell of it has been run in full. One, shortened for two CPU cores, is configs/mqar_figure2_cell.py: based 0.991 after 550 steps,
softmax 0.343 and Mamba 0.259 after 1,200 (docs/results/mqar_figure2_cell.json).
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Run, Training

EXAMPLES, EPOCHS = 100_000, 64
POINTS = ((64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128))  # tokens, pairs, rows of a batch

ATTENTION = ("softmax(heads=1, rope_theta=None, bias=True, dropout=0.1)",)
BASED = ("base_conv(conv_size=3)", "based(heads=1, feature_dim=8)")
MAMBA = ("mamba",)


def data(length, pairs, batch):
    """One data point: the task, epochs as steps, and as many learned positions as there are tokens."""
    epoch = EXAMPLES // batch
    sizes = f"vocab_size=8192, length={length}, pairs={pairs}, examples={EXAMPLES}, batch_size={batch}"
    return {
        "task": f"mqar({sizes}, eval_examples=3000, seed=123)",
        "training.steps": EPOCHS * epoch,
        "training.eval_every": epoch,
        "training.checkpoint_every": 4 * epoch,
        "model.learned_positions": length,
    }


def recurrent(layers, depth):
    """A mixer that needs no positions."""
    return {"model.layers": layers, "model.depth": depth, "model.learned_positions": None}


config = Comparison(
    base=Experiment(
        model=Model(channel="none", norm="layer", tie_embeddings=True, dropout=0.0, embedding_dropout=0.1),
        optimizer=Optimizer(
            rule="adamw(decay_all=True, b2=0.999)",
            schedule="cosine(warmup_steps=0, final_fraction=0.0)",
            clip_norm=None,
        ),
        training=Training(seed=123, stop_above=0.99, log_every=100, keep=1),
        run=Run(name="mqar-figure2"),
    ),
    axes={
        "data": {f"L={length} K={pairs}": data(length, pairs, batch) for length, pairs, batch in POINTS},
        "mixer": {
            "softmax": {"model.layers": ATTENTION, "model.depth": 2},
            "based, 4 layers": recurrent(BASED, 4),
            "based, 2 layers": recurrent(BASED, 2),
            "mamba, 4 layers": recurrent(MAMBA, 4),
            "mamba, 2 layers": recurrent(MAMBA, 2),
        },
        "model.d_model": (64, 128, 256, 512),
        "optimizer.learning_rate": (1e-4, 4.642e-4, 2.154e-3, 1e-2),
    },
)
