"""Times whole models against those of other projects with the same weights: forward, loss and backward, without an optimiser.

    pip install -e ".[peers]" && pip install --no-deps recurrentgemma==1.0.1
    python -m benchmarks.peers                                      # all that is installed, on a CPU tens of minutes
    python -m benchmarks.peers --peers transformers-mamba2 mamba2-jax --d-model 128

Run from the checkout, with the allocator that benchmarks/kernels.py describes. Models have 2 layers, 256 tokens of vocabulary and
the peer's own settings; ours is what `seqzoo.convert` makes of the peer's weights. A pair whose logits or gradients differ is
not timed. Those of jax-linear-attention (Python 3.12) are ops, not models. A peer that is not there is recorded with the reason.
"""

import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import measure, rival_ops, rivals
from seqzoo.specs import did_you_mean

PEERS = rivals.MODELS | rival_ops.OPS


@dataclass(frozen=True)
class Settings:
    """Settings: peers to time, and repeats."""

    peers: tuple[str, ...] = ()
    """Only these, of the names in PEERS, or beginnings of names such as "jla"; empty: all but those on request."""
    d_model: tuple[int, ...] = (128, 256)
    """Widths; each is a separate pair."""
    length: int = 1024
    """Tokens in a row."""
    slow_length: int = 256
    """The same for transformers' Mamba, whose time grows with the square: a step of 1024 takes two minutes."""
    batch: int = 4
    """Rows."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N>=1")] = 9
    """Timed rounds; each round makes one step of ours and one of theirs."""
    patience: float = 300.0
    """Seconds for the rounds of one pair: slower ones get fewer, one at least."""
    seed: int = 0
    """Seed of weights and tokens."""
    out: Path | None = None
    """Path of the JSON; default benchmarks/results/peers_BACKEND.json."""


def selected(names: tuple[str, ...]) -> list[str]:
    """The peers of these names or beginnings of names; SystemExit for a name that fits none."""
    fits = lambda name, wanted: name == wanted or name.startswith(f"{wanted}-")
    for wanted in names:
        if not any(fits(name, wanted) for name in PEERS):
            known = ", ".join(PEERS)
            raise SystemExit(f"no peer is called {wanted!r}; known: {known}.{did_you_mean(wanted, tuple(PEERS))}")
    return [name for name in PEERS if not names or any(fits(name, wanted) for wanted in names)]


def alone(function, *arguments):
    """function(*arguments) in a separate process: pairs share no memory and no threads, and a crash ends only its own pair.

    Raises:
      BrokenProcessPool: the process died.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def asked(name: str, d_model: int, settings: Settings) -> dict:
    """The head of a pair's record: who, and at what size."""
    peer = PEERS[name]
    size = rivals.Size(settings.batch, settings.slow_length if peer.slow else settings.length, d_model, settings.seed)
    return {"peer": name, "package": peer.package, "version": peer.version(), **size._asdict()}


def run(name: str, d_model: int, settings: Settings) -> dict:
    """One pair's record: agreement and samples, or why there are none."""
    record = asked(name, d_model, settings)
    if PEERS[name].wanted and name not in settings.peers:
        return record | {"absent": f"skipped unless named: {PEERS[name].wanted}"}
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        pair = PEERS[name].build(rivals.Size(*(record[field] for field in rivals.Size._fields)))
        return record | timed(pair, settings)
    except (ImportError, rivals.Absent) as reason:
        return record | {"absent": f"{type(reason).__name__}: {reason}"}
    except Exception as reason:  # other projects raise what they like, and the rest of the pairs are still to be timed
        return record | {"refused": f"{type(reason).__name__}: {reason}".partition("\n")[0]}


def timed(pair: rivals.Pair, settings: Settings) -> dict:
    """Agreement, then the samples of both sides in turns. Where they differ there are none."""
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    begin = time.perf_counter()
    arrays = {side: measure.host(made.step()[0]) for side, made in sides.items()}
    round_seconds = time.perf_counter() - begin
    error = measure.worst_error(arrays["ours"], arrays["theirs"])
    result = {side: dict(made.facts) for side, made in sides.items()} | {"compared": pair.compared, "error": error}
    if not error <= measure.TOLERANCE:
        return result | {"refused": f"they differ by {error:.1e} in {pair.compared}"}
    repeats = max(1, min(settings.repeats, int(settings.patience / round_seconds) - 1))
    for side, samples in measure.interleaved({side: made.step for side, made in sides.items()}, (), repeats).items():
        result[side] |= {"seconds": samples, "median": statistics.median(samples)}
    return result | {"ratio": result["theirs"]["median"] / result["ours"]["median"]}


def table(records: list[dict]) -> Table:
    """One row per pair. The last column says how many times as long theirs takes."""
    view = Table(title="one training step, theirs and ours", title_justify="left")
    view.add_column("theirs")
    for column in ("d", "T", "parameters", "of ours", "error", "rounds", "ms", "of ours", "theirs / ours"):
        view.add_column(column, justify="right")
    for r in records:
        size = (r["peer"], str(r["d_model"]), str(r["length"]))
        if "ratio" not in r:
            error = f"{r['error']:.0e}" if "error" in r else ""
            view.add_row(*size, "", "", error, "", "", "", "absent" if "absent" in r else "refused")
            continue
        both = r["theirs"], r["ours"]
        counts = (f"{side['parameters']:,}" if "parameters" in side else "op" for side in both)
        times = (f"{1e3 * side['median']:.1f}" for side in both)
        rounds = str(len(r["ours"]["seconds"]))
        view.add_row(
            *size, *counts, f"{r['error']:.0e}", rounds, *times, f"{r['ratio']:.2f}", style="" if r["ratio"] > 1 else "bold"
        )
    return view


def main(settings: Settings) -> int:
    """Runs the chosen pairs, prints a line each and a table, writes the JSON after every one; returns how many were refused."""
    if settings.repeats < 1:
        raise SystemExit(f"--repeats {settings.repeats}: wanted at least 1")
    peers = selected(settings.peers)
    surroundings = alone(measure.surroundings)  # in this process JAX would hold the device that the others need
    out = settings.out or measure.ROOT / "benchmarks" / "results" / f"peers_{surroundings['machine']['backend']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if os.isatty(1) else 140)
    record = surroundings | {
        "settings": asdict(settings) | {"out": out.name},
        "model": {"depth": rivals.DEPTH, "vocabulary": rivals.VOCABULARY, "dtype": "float32"},
        "threads": rivals.cores(),
        "tolerance": measure.TOLERANCE,
        "pairs": [],
    }
    for name in peers:
        for d_model in settings.d_model:
            try:
                result = alone(run, name, d_model, settings)
            except BrokenProcessPool as reason:
                result = asked(name, d_model, settings) | {"refused": f"the process that ran both died: {reason}"}
            record["pairs"].append(result)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            said = f"{result['ratio']:.2f} times ours" if "ratio" in result else result.get("absent") or result["refused"]
            console.print(f"{name}, d {d_model}: {said}", markup=False)
    console.print(table(record["pairs"]))
    console.print(f"written: {out}", markup=False)
    return sum("refused" in result for result in record["pairs"])


if __name__ == "__main__":
    raise SystemExit(1 if main(tyro.cli(Settings, description=__doc__)) else 0)
