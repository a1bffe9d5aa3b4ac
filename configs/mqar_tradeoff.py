"""Recall against memory: every recurrent mixer at 1 to 32 KiB behind the same convolution, beside softmax attention and a window.

    python train.py configs/mqar_tradeoff.py --budget 4096 --run.name tradeoff-4096       # one size at a time: each is a part
    python train.py report runs/tradeoff-*                                                # all parts in one page

Trained on 32 pairs in 128 tokens, evaluated on 16 and 32. One shape for each mixer and budget, the best of three learning rates by
validation, then two more seeds (other initial weights and other examples) at that rate. A run ends when it has solved the task,
at a plateau, or after 1,000 steps, still learning. A part that was stopped continues with the same command.
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Run, Training

RECURRENT = (
    *("linear", "based", "retnet", "lightning", "simple_gla", "gla", "hgrn2", "gsa", "norm_attention", "flow", "mlstm", "rwkv6"),
    *("deltanet", "gated_deltanet", "gated_deltaproduct", "kda", "comba", "rwkv7"),
    *("mamba", "mamba2", "s4d", "s5", "lru", "rg_lru", "mega_ema", "min_gru", "min_lstm", "hgrn", "qlstm"),
)
# Without positions: the convolution tells attention which token came before. A window of N tokens holds N keys and values.
ATTENTION = ("softmax(heads=1, rope_theta=None)", "softmax(heads=1, rope_theta=None, window=...)")

config = Comparison(
    base=Experiment(
        model=Model(d_model=64, depth=2, channel="none", tie_embeddings=False),
        task="mqar(vocab_size=256, length=128, pairs=32, eval_pairs=(16, 32), batch_size=64, eval_examples=256)",
        optimizer=Optimizer(learning_rate=1e-2),
        training=Training(
            steps=1000, eval_every=50, checkpoint_every=1000, log_every=50, keep=1, stop_above=0.98, patience=6, vary_data=True
        ),
        run=Run(name="mqar-tradeoff"),
    ),
    axes={
        "mixer": {mixer: {"model.layers": ("base_conv", mixer)} for mixer in (*RECURRENT, *ATTENTION)},
        "optimizer.learning_rate": (3e-3, 6e-3, 1.2e-2),
    },
    match="state_bytes",
    budget=(1024, 4096, 16384, 32768),
    shapes=1,
    tuned=True,
    seeds_of_best=(1, 2),
)
