"""Times the forms of the ops that have several, with gradients and without, and writes which was fastest where.

    python -m benchmarks.choose                     # both ops, on the platform at hand
    python -m benchmarks.choose --ops linear_attention

The tables are kernels/OP/tuning.py (or measured.py), which `implementation=None` reads; what is known of other platforms stays. All
forms of one shape take turns, and the median of the rounds decides. Use a machine that does nothing else.
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
from seqzoo.kernels.common.implementations import Choice
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_recurrence import linear_recurrence

LINEAR_ATTENTION = ("recurrent", "chunkwise")
LINEAR_RECURRENCE = ("recurrent", "chunkwise")


@dataclass(frozen=True)
class Settings:
    """Settings: ops to time, and repeats."""

    ops: tuple[str, ...] = ("linear_attention", "linear_recurrence")
    """Ops whose tables are written."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N>=3")] = 5
    """Timed rounds; each round calls every form once."""
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


def _linear_recurrence(tokens: int) -> Iterator[tuple]:
    for kind in ("real", "complex"):
        for rows in (1, 8):
            for width in (64, 512, 2048):
                a, b = jax.random.uniform(jax.random.key(0), (2, rows, tokens, width), minval=0.5, maxval=1.0)
                turn = (lambda x: jax.lax.complex(0.8 * x, 0.6 * x)) if kind == "complex" else (lambda x: x)
                yield kind, (rows, width), {"a": turn(a), "b": turn(b)}


class Op(NamedTuple):
    """One thing to time."""

    call: Callable
    shapes: Callable  # tokens -> (kind, sizes, arrays by argument) for each shape
    forms: Choice  # the candidates, alone and with gradients
    module: str  # the file of the table
    table: str  # its name


OPS = {
    "linear_attention": Op(
        linear_attention,
        _linear_attention,
        Choice(LINEAR_ATTENTION, (*LINEAR_ATTENTION, "recurrent_forward_chunkwise_backward")),
        "tuning",
        "TUNING",
    ),
    "linear_recurrence": Op(
        linear_recurrence, _linear_recurrence, Choice(LINEAR_RECURRENCE, LINEAR_RECURRENCE), "measured", "MEASURED"
    ),
}


def fastest(op: Op, named: dict, repeats: int) -> tuple[Choice, list[dict[str, float]]]:
    """The fastest forms of an op of these arguments, and the median seconds of each in either pass."""
    arrays = tuple(named.values())
    call = lambda form: lambda *arrays: op.call(**dict(zip(named, arrays, strict=True)), implementation=form)[0]
    found = []
    for which, forms in zip(("forward", "forward+backward"), op.forms, strict=True):
        executables = {form: measure.passes(call(form), arrays)[which].lower(*arrays).compile() for form in forms}
        samples = measure.interleaved(executables, arrays, repeats)
        found.append({form: statistics.median(seconds) for form, seconds in samples.items()})
    return Choice(*(min(medians, key=medians.get) for medians in found)), found


def source(module: Any, name: str, table: dict) -> str:
    """The table's file, with the docstring it had."""
    lines = [f'"""{module.__doc__}"""\n', f"{name} = {{"]
    for platform, kinds in sorted(table.items()):
        lines.append(f'    "{platform}": {{')
        for kind, sizes in sorted(kinds.items()):
            lines.append(f'        "{kind}": {{')
            lines += [f'            {size}: ("{forms[0]}", "{forms[1]}"),' for size, forms in sorted(sizes.items())]
            lines.append("        },")
        lines.append("    },")
    return "\n".join([*lines, "}"]) + "\n"


def main(settings: Settings) -> None:
    """Writes the tables of the chosen ops, one after the other."""
    if unknown := set(settings.ops) - set(OPS):
        raise SystemExit(f"--ops {' '.join(sorted(unknown))}: wanted some of {', '.join(OPS)}")
    console = Console()
    for name in settings.ops:
        op, kinds = OPS[name], {}
        for kind, sizes, arrays in op.shapes(settings.tokens):
            forms, medians = fastest(op, arrays, settings.repeats)
            kinds.setdefault(kind, {})[sizes] = tuple(forms)
            times = [" ".join(f"{form} {1e3 * x:.2f}" for form, x in one.items()) for one in medians]
            console.print(f"{name} {kind} {sizes}: {forms.forward}, {forms.backward}  ({' ms, with gradients '.join(times)} ms)")
        module = importlib.import_module(f"seqzoo.kernels.{name}.{op.module}")
        table = getattr(module, op.table) | {jax.default_backend(): kinds}
        path = measure.ROOT / "kernels" / name / f"{op.module}.py"
        path.write_text(source(module, op.table, table))
        console.print(f"written: {path.relative_to(measure.ROOT)}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
