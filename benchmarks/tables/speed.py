"""The README's tables of speed, from the recorded results: `python -m benchmarks.tables.speed` prints them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
PEERS = {  # how a peer is called in the record, and in the table
    "transformers-mamba": "transformers, Mamba",
    "transformers-mamba2": "transformers, Mamba-2",
    "transformers-xlstm": "transformers, xLSTM",
    "transformers-minimax": "transformers, MiniMax",
    "transformers-qwen3_5": "transformers, Qwen3.5",
    "transformers-kimi_linear": "transformers, Kimi Linear",
    "transformers-rwkv": "transformers, RWKV-4",
    "transformers-recurrent_gemma": "transformers, RecurrentGemma",
    "mamba2-jax": "mamba2-jax",
    "recurrentgemma": "recurrentgemma",
}


def kernels() -> str:
    """One row per op and shape: milliseconds of the forward and backward pass, here and for the fastest alternative."""
    rows = []
    for case in _record("kernels_cpu")["cases"]:
        measured = {name: each for name, each in case["passes"]["forward+backward"].items() if "median" in each}
        others = {name: each["median"] for name, each in measured.items() if not each.get("ours")}
        if others:
            ours, best = measured["default"]["median"], min(others, key=lambda name: others[name])
            times = [f"{1e3 * seconds:.1f}" for seconds in (ours, others[best])]
            rows.append([f"`{case['op']}`", case["shape"], times[0], f"{times[1]} (`{best}`)", f"{others[best] / ours:.1f}"])
    return _table(["op", "shape", "ms here", "ms of the fastest alternative", "ratio"], rows)


def peers() -> str:
    """One row per project and model: time of a training step there over the time here, at each width."""
    ratios: dict[tuple[str, int], dict[int, float]] = {}
    for pair in _record("peers_cpu")["pairs"]:
        if "ratio" in pair:
            name = PEERS.get(pair["peer"]) or f"jax-linear-attention, {pair['peer'].removeprefix('jla-')}"
            ratios.setdefault((name, pair["length"]), {})[pair["d_model"]] = pair["ratio"]
    widths = sorted({width for each in ratios.values() for width in each})
    rows = [[name, f"{length:,}", *(f"{each[width]:.2f}" for width in widths)] for (name, length), each in ratios.items()]
    return _table(["project, model", "tokens", *(f"ratio, width {width}" for width in widths)], rows)


def _record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


TABLES = {"kernels": kernels, "peers": peers}

if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"{name}:\n\n{table()}")
