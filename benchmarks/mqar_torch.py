"""Trains one MQAR cell here and as the obvious PyTorch script, in turns: seconds of whole runs, and the accuracy they reach.

    pip install -e ".[oracle]"
    python -m benchmarks.mqar_torch

Both are 2 layers of causal softmax attention with 2 heads before a norm, without MLP, with learned positions and a head of its own,
under AdamW with warm-up, cosine and clipping; both start at the same spread of weights and see batch n of the same task at step n.
PyTorch's batches are made beforehand and its time does not contain that; ours are made in the step. Its settings are the fastest on
a CPU: scaled_dot_product_attention, AdamW's fused update. It is not compiled. The process keeps freed memory, as `train.py` does.
Our time of compiling, once for all runs, is reported apart. Without `taskset` both use all cores.
"""

import io
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import jax
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import nn

from benchmarks import measure, rivals
from seqzoo import tasks
from seqzoo.config import Experiment, Model, Optimizer, Training
from seqzoo.training import train
from seqzoo.training.programs import Programs
from seqzoo.training.run.allocator import keep_freed_memory

LAYERS, HEADS, WARMUP, CLIP = 2, 2, 50, 1.0
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    vocabulary: int = 128
    """Token ids, half of them values."""
    length: int = 64
    """Tokens of an example."""
    pairs: int = 8
    """Key-value pairs of an example."""
    d_model: int = 64
    """Width."""
    batch: int = 64
    """Examples of a training step."""
    steps: int = 500
    """Training steps of a run."""
    learning_rate: float = 5e-3
    """Largest learning rate."""
    turns: int = 3
    """Runs of each; the seed of run n is n."""
    out: Path = measure.ROOT / "benchmarks" / "results" / "mqar_torch.json"
    """Path of the JSON."""

    @property
    def task(self) -> str:
        """The task's spec, of both."""
        sizes = f"vocab_size={self.vocabulary}, length={self.length}, pairs={self.pairs}, batch_size={self.batch}"
        return f"mqar({sizes}, eval_examples=256)"


class Attention(nn.Module):
    """Causal softmax attention after a norm, added to its input."""

    def __init__(self, d: int):
        super().__init__()
        self.norm, self.qkv, self.out = nn.RMSNorm(d, 1e-5), nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, HEADS, d // HEADS).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, d))


class LanguageModel(nn.Module):
    """Embeddings of tokens and positions, layers of attention, a norm and a head."""

    def __init__(self, settings: Settings):
        super().__init__()
        d = settings.d_model
        self.embedding, self.positions = nn.Embedding(settings.vocabulary, d), nn.Embedding(settings.length, d)
        self.layers, self.norm = nn.Sequential(*(Attention(d) for _ in range(LAYERS))), nn.RMSNorm(d, 1e-5)
        self.head = nn.Linear(d, settings.vocabulary, bias=False)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=d**-0.5)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.embedding(tokens) + self.positions.weight)))


def theirs(settings: Settings, seed: int, batches, evaluation) -> dict:
    """One run in PyTorch: seconds of training, without those of making the batches, and accuracy."""
    torch.manual_seed(seed)
    begin = time.perf_counter()
    model = LanguageModel(settings)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    down = lambda step: 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (settings.steps - WARMUP)))
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: step / WARMUP if step < WARMUP else down(step))
    for tokens, targets in batches:
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=0)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adamw.step()
        schedule.step()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        hits = [(model(tokens).argmax(-1) == targets)[targets > 0].float().mean().item() for tokens, targets in evaluation]
    return {
        "train": seconds,
        "accuracy": float(np.mean(hits)),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def ours(settings: Settings, seed: int, programs: Programs) -> dict:
    """One run of ours: seconds of training and of compiling the step, which only the first does; accuracy."""
    experiment = Experiment(
        model=Model(
            layers=f"softmax(heads={HEADS}, rope_theta=None)",
            depth=LAYERS,
            d_model=settings.d_model,
            channel="none",
            tie_embeddings=False,
            learned_positions=settings.length,
        ),
        task=settings.task,
        optimizer=Optimizer(
            rule=f"adamw(b1={BETAS[0]}, b2={BETAS[1]}, weight_decay={WEIGHT_DECAY})",
            learning_rate=settings.learning_rate,
            schedule=f"cosine(warmup_steps={WARMUP}, final_fraction=0)",
            clip_norm=CLIP,
        ),
        training=Training(
            steps=settings.steps, seed=seed, eval_every=settings.steps, checkpoint_every=settings.steps, log_every=settings.steps
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        summary = train(experiment, Path(folder) / "run", console=Console(file=io.StringIO()), programs=programs)
    (evaluated,) = summary["final"].values()
    training, compiling = (summary["seconds"].get(phase, 0.0) for phase in ("train", "compile"))
    return {
        "train": training,
        "compile": compiling,
        "accuracy": evaluated["accuracy"],
        "parameters": summary["parameters"],
    }


def made(settings: Settings):
    """Batches of training and of evaluation as PyTorch's arrays; the target 0 is not scored."""
    task = tasks.registry.create(settings.task)
    make = jax.jit(task.batch, static_argnums=0)
    arrays = lambda batch: tuple(torch.from_numpy(np.array(batch[name])).long() for name in ("tokens", "targets"))
    (part,) = task.eval_sets()
    training = [arrays(make(task.spec(step), step)) for step in range(settings.steps)]
    return training, [arrays(make(part.spec, index)) for index in range(part.batches)]


def main(settings: Settings) -> None:
    """Trains both in turns, prints and writes the JSON."""
    keep_freed_memory()
    torch.set_num_threads(rivals.cores())
    batches, evaluation = made(settings)
    record = measure.surroundings()
    record["versions"] |= {"torch": torch.__version__}
    record |= {"settings": asdict(settings) | {"out": settings.out.name}, "threads": rivals.cores(), "ours": [], "theirs": []}
    programs = Programs()
    for turn in range(settings.turns):
        record["ours"].append(ours(settings, turn, programs))
        record["theirs"].append(theirs(settings, turn, batches, evaluation))
        record["load_after"] = measure.surroundings()["machine"]["load"]
        medians = {
            side: {name: median(run[name] for run in record[side]) for name in ("train", "accuracy")} for side in ("ours", "theirs")
        }
        compiling = record["ours"][0]["compile"]
        record["medians"] = medians
        record["theirs_over_ours"] = {
            "train": medians["theirs"]["train"] / medians["ours"]["train"],
            "with_compilation": medians["theirs"]["train"] / (medians["ours"]["train"] + compiling),
        }
        settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"turn {turn + 1}: {record['ours'][-1]}, {record['theirs'][-1]}, {record['theirs_over_ours']}", flush=True)
    print(f"written: {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
