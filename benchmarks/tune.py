"""Measures the implementations of linear_attention, with gradients and without, and writes its tuning table.

    python -m benchmarks.tune               # on the platform at hand: 55 shapes, half an hour on 2 CPU cores
    python -m benchmarks.tune --kinds head  # one kind of transition

The table is kernels/linear_attention/tuning.py, off which `implementation=None` is read; rows of other platforms and kinds stay.
All implementations of one shape take turns, and the least time of the rounds counts. Use a machine that does nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from benchmarks import measure
from seqzoo.kernels.common.implementations import Times
from seqzoo.kernels.linear_attention import linear_attention, tuning

KINDS = ("none", "head", "channel", "value", "low rank")
FORWARD = ("recurrent", "chunkwise")
BACKWARD = (*FORWARD, "recurrent_forward_chunkwise_backward")
PATH = measure.ROOT / "kernels" / "linear_attention" / "tuning.py"


@dataclass(frozen=True)
class Settings:
    """Extent of the measurement."""

    kinds: tuple[str, ...] = KINDS
    """Kinds of transition."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N>=3")] = 7
    """Timed rounds; each round calls every implementation once."""
    tokens: int = 1024
    """Length of the rows."""


def shapes(kind: str, tokens: int) -> Iterator[tuple[tuple[int, int, int], dict[str, jax.Array]]]:
    """Sizes (batch rows times heads, k, v) and arrays by argument."""
    for rows in (1, 8, 64):
        for width in (8, 32, 64, 128):
            if rows * width > 4096:
                continue  # minutes each, and decided by the width alone
            q, k, v, noise = jax.random.normal(jax.random.key(0), (4, 1, tokens, rows, width)) / width**0.5
            log_decay = jax.nn.log_sigmoid(noise + 4.0)
            gates = {"none": {}, "head": {"log_decay": log_decay[..., 0]}}
            gates |= {"channel": {"log_decay": log_decay}, "value": {"value_log_decay": log_decay}}
            gates["low rank"] = {"log_decay": log_decay[..., 0], "a": -k}
            yield (rows, width, width), {"q": q, "k": k, "v": v, **gates[kind]}


def times(named: dict[str, jax.Array], repeats: int) -> tuple[Times, Times]:
    """Milliseconds of each implementation for these arguments: (without gradients, with gradients)."""
    arrays = tuple(named.values())
    call = lambda name: lambda *arrays: linear_attention(**dict(zip(named, arrays, strict=True)), implementation=name)[0]
    found = []
    for which, names in (("forward", FORWARD), ("forward+backward", BACKWARD)):
        executables = {name: measure.passes(call(name), arrays)[which].lower(*arrays).compile() for name in names}
        samples = measure.interleaved(executables, arrays, repeats)
        found.append({name: float(f"{1e3 * min(seconds):.3g}") for name, seconds in samples.items()})
    return found[0], found[1]


def source(table: dict[str, Any], machines: dict[str, str]) -> str:
    """The text of the table's file, with the docstring that it has."""
    lines = [f'"""{tuning.__doc__}"""\n', "MACHINES = {", *(f'    "{name}": "{machines[name]}",' for name in sorted(machines)), "}"]
    lines += ["TUNING = {"]
    for platform, kinds in sorted(table.items()):
        lines.append(f'    "{platform}": {{')
        for kind, sizes in sorted(kinds.items()):
            lines.append(f'        "{kind}": {{')
            for size, pair in sorted(sizes.items()):
                of_pass = ("{" + ", ".join(f'"{name}": {ms}' for name, ms in one.items()) + "}" for one in pair)
                lines += [f"            {size}: (", *(f"                {one}," for one in of_pass), "            ),"]
            lines.append("        },")
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def main(settings: Settings) -> None:
    """Measures the kinds of `settings` and writes the table after each."""
    if unknown := set(settings.kinds) - set(KINDS):
        raise SystemExit(f"--kinds {' '.join(sorted(unknown))}: wanted some of {', '.join(KINDS)}")
    console, platform = Console(), jax.default_backend()
    table = {name: dict(kinds) for name, kinds in tuning.TUNING.items()}
    machine = measure.surroundings()["machine"]
    said = f"{machine['cpu']}, {machine['cores']} cores" if platform == "cpu" else jax.devices()[0].device_kind
    machines = tuning.MACHINES | {platform: f"{said}, jax {jax.__version__}, {settings.tokens} tokens"}
    for kind in settings.kinds:
        rows = {}
        for sizes, arrays in shapes(kind, settings.tokens):
            rows[sizes] = times(arrays, settings.repeats)
            said = [" ".join(f"{name} {ms:g}" for name, ms in one.items()) for one in rows[sizes]]
            console.print(f"{kind} {sizes}: {' ms, with gradients '.join(said)} ms")
        table.setdefault(platform, {})[kind] = rows
        PATH.write_text(source(table, machines))
    console.print(f"written: {PATH.relative_to(measure.ROOT)}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
