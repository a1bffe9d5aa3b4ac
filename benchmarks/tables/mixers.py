"""The README's table of mixers, read off the registry: `python -m benchmarks.tables.mixers` prints it."""

import inspect

from flax import nnx

from seqzoo import mixers

WIDTH = 64
LENGTHS = (64, 4096)


def markdown() -> str:
    """One row per mixer: source, and parameters and decode state of a layer of width 64."""
    states = [f"state after {length:,} tokens" for length in LENGTHS]
    head = ["mixer", "source", "parameters", *states]
    rows = [head, ["---"] * len(head), *(_row(name) for name in mixers.names())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _row(name: str) -> list[str]:
    factory = mixers.registry.get(name)
    mixer = nnx.eval_shape(lambda: mixers.create(name, WIDTH, rngs=nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in nnx.to_flat_state(nnx.state(mixer, nnx.Param)).leaves)
    states = [f"{mixers.state_bytes(mixer, length):,} B" for length in LENGTHS]
    source = inspect.getdoc(factory).split("(")[1].split(")")[0]
    return [f"`{name}`", source, f"{parameters:,}", *states]


if __name__ == "__main__":
    print(markdown())
