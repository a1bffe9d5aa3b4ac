"""Tokens per second of decoding against the length of the context, for every mixer in one backbone of equal width.

    python -m benchmarks.decode                                     # all mixers, up to 65,536 tokens; minutes
    python -m benchmarks.decode --mixers softmax gla --contexts 256 1024

Each model really reads a context of random tokens, as `seqzoo.generate` does, and then produces `steps` more, greedily, in one
compiled loop; that is what is timed. Every round starts from the same state, so it includes one copy of it, which generation is
spared. All mixers at all contexts take turns, a round each; ratios are taken within rounds. A cache that grows has room for context
and steps, no more.

On Linux CPUs recordings are made with the variables that benchmarks/kernels.py names.
"""

import functools
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from seqzoo import mixers
from seqzoo.compare import figures
from seqzoo.generation import decoding
from seqzoo.generation.sampling import GREEDY
from seqzoo.model import LanguageModel

DECODE = jax.jit(decoding.decode.__wrapped__, static_argnames=("top_k", "block"))  # nothing is donated: rounds share their start


@dataclass(frozen=True)
class Settings:
    """The models, and how often they are timed."""

    mixers: tuple[str, ...] = ()
    """Spec strings, the first of which the others are compared with; empty: softmax, and all other mixers as by default."""
    contexts: tuple[int, ...] = (256, 1024, 4096, 16384, 65536)
    """Tokens that have been read."""
    d_model: int = 256
    """Width."""
    depth: int = 2
    """Blocks."""
    channel: str = "none"
    """Channel mixer of every block."""
    vocab_size: int = 256
    """Vocabulary size."""
    batch: int = 1
    """Rows."""
    steps: int = 32
    """Tokens of a row in one timed call."""
    prefill_chunk: int = 1024
    """Tokens of the context read at a time."""
    repeats: int = 7
    """Timed rounds."""
    out: Path | None = None
    """Path of the JSON; default benchmarks/results/decode_BACKEND.json."""
    picture: Path | None = None
    """Path of the figure; default docs/results/decode_BACKEND.png."""


def prepared(spec: str, context: int, settings: Settings):
    """(one timed call of a model after a context, bytes of its state per row)."""
    layers = {"layers": (spec,), "depth": settings.depth, "channel": settings.channel}
    model = LanguageModel(settings.vocab_size, settings.d_model, **layers, rngs=nnx.Rngs(0))
    rows = list(np.random.default_rng(0).integers(0, settings.vocab_size, (settings.batch, context), np.int32))
    chunk = min(settings.prefill_chunk, context)
    progress = decoding.prefill(model, rows, chunk=chunk, max_length=context + settings.steps)
    if not np.isfinite(progress.logits).all():
        raise FloatingPointError(f"{spec} after {context} tokens: logits are not finite")
    arrays = (model, progress, GREEDY, np.zeros((0,), np.int32), jnp.int32(settings.steps))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(progress.state)) // settings.batch
    return functools.partial(DECODE, *arrays, top_k=None, block=settings.steps), size


def table(runs: list[dict], contexts: tuple[int, ...]) -> Table:
    """Tokens per second, one row for each mixer and one column for each context."""
    view = Table("mixer", *(f"{context:,}" for context in contexts), title="tokens/s by context", title_justify="left")
    rates = {(run["mixer"], run["context"]): run["tokens_per_second"] for run in runs}
    for spec in dict.fromkeys(run["mixer"] for run in runs):
        view.add_row(spec, *(f"{rates[spec, context]:,.0f}" for context in contexts))
    return view


def main(settings: Settings) -> None:
    """Times all models at all contexts, prints a table, writes the JSON and the picture."""
    chosen = settings.mixers or ("softmax", *(name for name in mixers.names() if name != "softmax"))
    console = Console(width=None if os.isatty(1) else 140)
    calls, sizes = {}, {}
    for spec in chosen:
        for context in settings.contexts:
            calls[spec, context], sizes[spec, context] = prepared(spec, context, settings)
        console.print(f"{spec}: ready", markup=False, highlight=False)
    samples = measure.interleaved(calls, (), settings.repeats)
    shortest, tokens = min(settings.contexts), settings.batch * settings.steps
    ratio = lambda one, other: statistics.median(a / b for a, b in zip(samples[one], samples[other], strict=True))
    runs = [
        {
            "mixer": spec,
            "context": context,
            "state_bytes": sizes[spec, context],
            "seconds": samples[spec, context],
            "tokens_per_second": tokens / statistics.median(samples[spec, context]),
            "speed_against_first": ratio((chosen[0], context), (spec, context)),
            "speed_against_shortest": ratio((spec, shortest), (spec, context)),
        }
        for spec, context in calls
    ]
    console.print(table(runs, settings.contexts))
    name = f"decode_{jax.default_backend()}"
    out = settings.out or measure.ROOT / "benchmarks" / "results" / f"{name}.json"
    picture = settings.picture or measure.ROOT / "docs" / "results" / f"{name}.png"
    written = {"out": out.name, "picture": picture.name}
    record = measure.surroundings() | {"settings": asdict(settings) | written, "runs": runs}
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    rates = {spec: {run["context"]: run["tokens_per_second"] for run in runs if run["mixer"] == spec} for spec in chosen}
    figures.save(figures.decoding(rates), picture)
    console.print(f"written: {out}, {picture}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
