"""One cell of configs/mqar_figure2.py, shortened for two CPU cores: 64 tokens, 4 pairs, width 64, two layers.

    python train.py configs/mqar_figure2_cell.py

2 CPU cores shared with other work, jax 0.10.2, 2026-11-21: 11 min 55 s. Accuracy, chance 1/256, guessing one of the example's
values 1/4: based 0.991 at step 550, where it ended; softmax 0.343 and Mamba 0.259 after 1,200 steps. Recorded in
docs/results/mqar_figure2_cell.json.

Shorter than the paper: one learning rate instead of four; at most 1,200 steps of 64 examples (76,800) instead of 12,480 of 512 (6.4
million); a vocabulary of 512 instead of 8,192, with which the head would take nine tenths of a step; evaluation on 512 examples
every 50 steps instead of 3,000 once per epoch. The rest is as in the grid. It shows which mixers learn quickly at one learning
rate; it does not reproduce a point of the figure.
"""

from pathlib import Path
from typing import Any

from seqzoo.config import Comparison, load_file, replace

figure2: Any = load_file(Path(__file__).with_name("mqar_figure2.py"))  # a Comparison

SHORTENED = {
    "task": "mqar(vocab_size=512, length=64, pairs=4, examples=100000, batch_size=64, eval_examples=512, seed=123)",
    "training.steps": 1200,
    "training.eval_every": 50,
    "training.checkpoint_every": 600,
    "training.log_every": 50,
}

config = Comparison(
    base=replace(figure2.base, SHORTENED | {"model.learned_positions": 64, "model.d_model": 64, "run.name": "mqar-figure2-cell"}),
    axes={
        "mixer": {name: figure2.axes["mixer"][name] for name in ("softmax", "based, 2 layers", "mamba, 2 layers")},
        "optimizer.learning_rate": (2.154e-3,),
    },
)
