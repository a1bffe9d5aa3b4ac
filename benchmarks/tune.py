"""Times the implementations of an op at many sizes, with gradients and without, and writes the times to its tuning table.

    python -m benchmarks.tune                     # on the platform at hand
    python -m benchmarks.tune --ops linear_attention

The table kernels/OP/tuning.py holds milliseconds, and `implementation=None` takes the fastest at the nearest sizes. The entries of
other platforms stay. All implementations of one shape take turns; a time is the median over the rounds. Use an idle machine.
"""

import importlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from rich.console import Console

from benchmarks import measure
from seqzoo.kernels.common.implementations import Times, TuningTable, fastest_of
from seqzoo.kernels.linear_attention import linear_attention


@dataclass(frozen=True)
class Settings:
    """Settings: ops to time, and repeats."""

    ops: tuple[str, ...] = ("linear_attention",)
    """Ops to tune."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N>=3")] = 5
    """Timed rounds; each round calls every implementation once."""
    tokens: int = 1024
    """Length of the rows."""


def _linear_attention(tokens: int) -> Iterator[tuple]:
    """(kind, sizes, arrays by argument) for each shape."""
    for kind in ("none", "head", "channel", "value", "low rank"):
        for rows in (1, 8, 64):
            for width in (8, 32, 64, 128):
                if rows * width > 4096:
                    continue  # minutes each, and decided by the width alone
                q, k, v, noise = jax.random.normal(jax.random.key(0), (4, 1, tokens, rows, width)) / width**0.5
                log_decay = jax.nn.log_sigmoid(noise + 4.0)
                gates = {"none": {}, "head": {"log_decay": log_decay[..., 0]}}
                gates |= {"channel": {"log_decay": log_decay}, "value": {"value_log_decay": log_decay}}
                gates["low rank"] = {"log_decay": log_decay[..., 0], "a": -k}
                yield kind, (rows, width, width), {"q": q, "k": k, "v": v, **gates[kind]}


class Op(NamedTuple):
    """An op to tune."""

    call: Callable
    shapes: Callable  # tokens -> (kind, sizes, arrays by argument) for each shape
    forward: tuple[str, ...]  # candidates without gradients
    backward: tuple[str, ...]  # candidates with gradients


OPS = {
    "linear_attention": Op(
        linear_attention,
        _linear_attention,
        ("recurrent", "chunkwise"),
        ("recurrent", "chunkwise", "recurrent_forward_chunkwise_backward"),
    ),
}


def times(op: Op, arrays: dict, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every candidate without gradients ("forward") and with them ("backward")."""
    values = tuple(arrays.values())
    call = lambda name: lambda *values: op.call(**dict(zip(arrays, values, strict=True)), implementation=name)[0]
    found = {}
    for key, which, names in (("forward", "forward", op.forward), ("backward", "forward+backward", op.backward)):
        executables = {name: measure.passes(call(name), values)[which].lower(*values).compile() for name in names}
        samples = measure.interleaved(executables, values, repeats)
        found[key] = {name: float(f"{1e3 * statistics.median(seconds):.4g}") for name, seconds in samples.items()}
    return found


def source(module: Any, table: TuningTable) -> str:
    """The text of a module with the table, under the docstring that the module has."""
    lines = [f'"""{module.__doc__}"""\n', "from ..common.implementations import TuningTable\n", "TUNING: TuningTable = {"]
    for platform, kinds in sorted(table.items()):
        lines.append(f'    "{platform}": {{')
        for kind, sizes in sorted(kinds.items()):
            lines.append(f'        "{kind}": {{')
            for size, passes in sorted(sizes.items()):
                lines.append(f"            {size}: {{")
                lines += [f'                "{which}": {_literal(passes[which])},' for which in ("forward", "backward")]
                lines.append("            },")
            lines.append("        },")
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def _literal(times: Times) -> str:
    return "{" + ", ".join(f'"{name}": {time}' for name, time in times.items()) + "}"


def main(settings: Settings) -> None:
    """Writes the tables of the chosen ops, one after the other."""
    if unknown := set(settings.ops) - set(OPS):
        raise SystemExit(f"--ops {' '.join(sorted(unknown))}: wanted some of {', '.join(OPS)}")
    console = Console()
    for name in settings.ops:
        op, kinds = OPS[name], {}
        for kind, sizes, arrays in op.shapes(settings.tokens):
            found = times(op, arrays, settings.repeats)
            kinds.setdefault(kind, {})[sizes] = found
            console.print(f"{name} {kind} {sizes}: {', '.join(fastest_of(found))}  {found} ms", markup=False)
        module = importlib.import_module(f"seqzoo.kernels.{name}.tuning")
        path = measure.ROOT / "kernels" / name / "tuning.py"
        path.write_text(source(module, module.TUNING | {jax.default_backend(): kinds}), encoding="utf-8")
        console.print(f"written: {path.relative_to(measure.ROOT)}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
