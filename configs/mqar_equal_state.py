"""MQAR at equal memory: recurrent mixers with a state of about 4,096 bytes per row, after the same short convolution.

python train.py configs/mqar_equal_state.py                      # 54 runs: 40 minutes to two hours on two CPU cores; docs/mqar.md

Missing: aaren, hgrn and rwkv4, because no setting makes their state of 260 to 1,028 bytes larger, and flow, because its sums of
sources and sinks take 1,040 bytes in addition to its 4,096. qlstm has half the state of the others.
"""

from seqzoo.config import Comparison, Experiment, Model, Optimizer, Run, Training

# At width 64. Integer widths give about 4,096 bytes; document ids, tails of convolutions and counters are extra.
MIXERS = (
    "linear(heads=4)",
    "based(heads=1, feature_dim=4)",
    "retnet(heads=8)",
    "lightning(heads=4)",
    "simple_gla(heads=8)",
    "gla(heads=2)",
    "hgrn2(heads=4)",
    "gsa(heads=4, slots=8)",
    "norm_attention(heads=4)",
    "rwkv6",
    "mlstm(heads=2)",
    "mamba2(expand=1, head_dim=16, state=12)",
    "deltanet(heads=8)",
    "gated_deltanet(heads=8, expand_k=1, expand_v=1)",
    "gated_deltaproduct(heads=8, conv_size=3, expand_k=1, expand_v=1)",
    "kda(heads=8)",
    "comba(heads=8, expand_k=1, expand_v=1)",
    "rwkv7",
    "mamba(expand=1, state=13)",
    "s4d(state=16)",
    "s5(state=1024)",
    "lru(state=512)",
    "rg_lru(expand=4)",
    "mega_ema(state=16)",
    "min_gru(expand=16)",
    "min_lstm(expand=16)",
    "qlstm",
)

config = Comparison(
    base=Experiment(
        model=Model(d_model=64, depth=2, channel="none", tie_embeddings=False),
        task="mqar(vocab_size=256, length=64, pairs=16, eval_pairs=(4, 8, 16), batch_size=64, eval_examples=256)",
        optimizer=Optimizer(learning_rate=5e-3),
        training=Training(steps=600, eval_every=100, checkpoint_every=600, log_every=50, keep=1, stop_above=0.99),
        run=Run(name="mqar-equal-state"),
    ),
    axes={
        "mixer": {mixer: {"model.layers": ("base_conv(conv_size=3)", mixer)} for mixer in MIXERS},
        "optimizer.learning_rate": (2e-3, 6e-3),
    },
)
