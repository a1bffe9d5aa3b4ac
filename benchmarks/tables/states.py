"""Decode memory as published and as carried: `python -m benchmarks.tables.states` prints the table of docs/mqar.md.

Zoology and Based (Arora et al. 2023, arXiv:2312.04927; 2024, arXiv:2402.18668) count the numbers in a state by a formula for each
mixer, times 4 bytes. Ours are counted on the state itself. A row here holds the formula and every term by which the two differ, so
that they must agree to the byte; tests/mixers/test_accounting.py says whether they do.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from seqzoo import mixers

WIDTH, LENGTH = 64, 1024  # of the table; 1,024 tokens are the published formulas'

Formula = Callable[[int, int], int]  # (d_model, length) -> numbers of 4 bytes


class Account(NamedTuple):
    """One layer's state, two ways."""

    spec: str
    words: str  # the published formula, in numbers
    published: Formula
    terms: dict[str, Formula]  # what ours holds beyond that (negative: what it does not)


def _one(d: int, length: int) -> int:
    return 1


DOCUMENT = {"document id": _one}
CACHE = DOCUMENT | {"tokens in the cache": _one}

ACCOUNTS = (
    Account("softmax", "2 d L", lambda d, length: 2 * d * length, CACHE),
    Account("softmax(window=64)", "2 d w", lambda d, length: 2 * d * 64, CACHE),
    Account(
        "base_conv(conv_size=3)",
        "d k",
        lambda d, length: 3 * d,
        DOCUMENT | {"the present input, which a tail need not hold": lambda d, _: -d},
    ),
    Account("based(heads=1, feature_dim=8)", "d D + D", lambda d, length: (d + 1) * 45, DOCUMENT),
    Account("based(heads=1, feature_dim=16)", "d D + D", lambda d, length: (d + 1) * 153, DOCUMENT),
    Account("gla(heads=1)", "d_k d_v", lambda d, length: d // 2 * d, DOCUMENT),
    Account(
        "deltanet(heads=4)", "d_k d_v / h", lambda d, length: d * d // 4, DOCUMENT | {"tails of q, k and v": lambda d, _: 9 * d}
    ),
    Account(
        "gated_deltanet(heads=4, expand_k=1.0, expand_v=1.0)",
        "d_k d_v / h",
        lambda d, length: d * d // 4,
        DOCUMENT | {"tails of q, k and v": lambda d, _: 9 * d},
    ),
    Account("rwkv7(heads=4)", "d_k d_v / h", lambda d, length: d * d // 4, DOCUMENT | {"the last token": lambda d, _: d}),
    Account("mamba", "2 d n", lambda d, length: 2 * d * 16, DOCUMENT | {"tail of the convolution": lambda d, _: 3 * 2 * d}),
    Account(
        "mamba2",
        "2 d n",
        lambda d, length: 2 * d * 128,
        DOCUMENT | {"tail of the convolution of x": lambda d, _: 3 * 2 * d, "and of B and C": lambda d, _: 3 * 2 * 128},
    ),
)


def carried(spec: str, d_model: int, length: int) -> int:
    """Bytes per row of the state that a layer really carries, in float32."""
    mixer = nnx.eval_shape(lambda: mixers.create(spec, d_model, rngs=nnx.Rngs(0)))
    return mixers.state_bytes(mixer, length)


def markdown() -> str:
    """One row per account, at width 64 and 1,024 tokens."""
    head = ["layer", "published formula", "published", "carried", "the difference"]
    rows = [head, ["---"] * 2 + ["---:"] * 2 + ["---"]]
    for spec, words, published, terms in ACCOUNTS:
        difference = "; ".join(f"{term} {4 * number(WIDTH, LENGTH):+,} B" for term, number in terms.items())
        sizes = (4 * published(WIDTH, LENGTH), carried(spec, WIDTH, LENGTH))
        rows.append([f"`{spec}`", words, *(f"{size:,} B" for size in sizes), difference])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    print(markdown())
