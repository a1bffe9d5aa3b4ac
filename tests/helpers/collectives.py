"""Traffic between devices in a compiled program."""

import re

import numpy as np

KINDS = r"= (.*?) (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(?:-start)?\("


def moved(compiled) -> dict[str, int]:
    """Elements that collectives bring to one device, by kind; an operation inside a loop counts once."""
    total = {}
    for shapes, kind in re.findall(KINDS, compiled.as_text()):
        sizes = [np.prod([int(n) for n in dims.split(",") if n], dtype=int) for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)]
        total[kind] = total.get(kind, 0) + int(sum(sizes))
    return total
