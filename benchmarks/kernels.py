"""Times every op against the same computation in plain JAX: forward, and forward + backward.

    python -m benchmarks.kernels                                    # all shapes, minutes
    python -m benchmarks.kernels --quick --ops attention linear_attention

Run from the checkout. On Linux CPUs fresh large buffers cost page faults that hide the arithmetic; recordings are made with

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
    MALLOC_TOP_PAD_=268435456

and say so under "environment". A candidate whose values or gradients differ from the reference at that very shape is not timed.
"""

import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.cases import Case, cases

PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Settings:
    """Settings: ops to time, and repeats."""

    ops: tuple[str, ...] = ()
    """Only these ops; empty: all."""
    shape: str = ""
    """Only shapes whose label contains this text, such as "T4096"."""
    quick: bool = False
    """One small shape per op instead of the published ones."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N>=7")] = 7
    """Timed rounds; each round calls every candidate once."""
    precision: str = "highest"
    """jax_default_matmul_precision, the same for all candidates: with less, accelerators round float32 inputs."""
    seed: int = 0
    """Seed of the inputs."""
    out: Path | None = None
    """Path of the JSON; default benchmarks/results/kernels_BACKEND[_quick].json."""


def run_pass(case: Case, arrays, which: str, repeats: int) -> dict[str, dict]:
    """Every candidate of one case in one pass: its samples, or why there are none."""
    wanted = measure.host(measure.passes(case.reference, arrays)[which](*arrays))
    candidates = {**case.ours, "reference": case.reference, **case.others}
    results, executables = {}, {}
    for name, function in candidates.items():
        results[name] = {"ours": name in case.ours or name == "reference"}
        try:
            executable, needed, seconds = measure.compiled(measure.passes(function, arrays)[which], arrays)
            results[name] |= {"bytes": needed, "compile_seconds": seconds}
            error = measure.worst_error(measure.host(executable(*arrays)), wanted)
            results[name]["error"] = error
            if not error <= measure.TOLERANCE:
                raise measure.Refused(f"differs from the reference by {error:.1e}")
            executables[name] = executable
        except (measure.Refused, NotImplementedError, jax.errors.JaxRuntimeError) as reason:
            results[name]["refused"] = f"{type(reason).__name__}: {reason}".partition("\n")[0]
    for name, samples in measure.interleaved(executables, arrays, repeats).items():
        results[name] |= {"seconds": samples, "median": statistics.median(samples)}
    return results


def table(case: Case, results: dict[str, dict[str, dict]]) -> Table:
    """One row per candidate: times, memory, and how many times faster than the best alternative it is."""
    view = Table(title=f"{case.op}  {case.label}", title_justify="left")
    view.add_column("candidate")
    for which in PASSES:
        for column in (f"{which} ms", "MiB", "x best other"):
            view.add_column(column, justify="right")
    for name in results[PASSES[0]]:
        cells = []
        for which in PASSES:
            result = results[which][name]
            if "refused" in result:
                cells += ["refused", f"{result['bytes'] / 2**20:.0f}" if "bytes" in result else "", ""]
                continue
            others = [r["median"] for r in results[which].values() if not r["ours"] and "median" in r]
            ratio = f"{min(others) / result['median']:.2f}" if others and result["ours"] else ""
            cells += [f"{1e3 * result['median']:.2f}", f"{result['bytes'] / 2**20:.0f}", ratio]
        view.add_row(name if results[PASSES[0]][name]["ours"] else f"({name})", *cells)
    return view


def main(settings: Settings) -> int:
    """Runs the chosen cases, prints a table each and writes the JSON after every one; returns how many of our own were refused."""
    chosen = [c for c in cases(settings.quick) if (not settings.ops or c.op in settings.ops) and settings.shape in c.label]
    known = sorted({c.op for c in cases(settings.quick)})
    if unknown := set(settings.ops) - set(known):
        raise SystemExit(f"no op is called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if not chosen:
        raise SystemExit(f"no shape of {', '.join(settings.ops or known)} contains {settings.shape!r}")
    if settings.repeats < 7:
        raise SystemExit(f"--repeats {settings.repeats}: wanted at least 7, fewer say nothing on a shared machine")
    jax.config.update("jax_default_matmul_precision", settings.precision)
    name = f"kernels_{jax.default_backend()}{'_quick' if settings.quick else ''}.json"
    out = settings.out or measure.ROOT / "benchmarks" / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if os.isatty(1) else 140)
    record = measure.surroundings() | {
        "settings": asdict(settings) | {"out": str(out.name)},
        "tolerance": measure.TOLERANCE,
        "cases": [],
    }
    refused = 0
    for case in chosen:
        arrays = jax.block_until_ready(case.inputs(jax.random.key(settings.seed)))
        results = {which: run_pass(case, arrays, which, settings.repeats) for which in PASSES}
        console.print(table(case, results))
        for which in PASSES:
            for candidate, result in results[which].items():
                if "refused" in result:
                    refused += result["ours"]
                    console.print(f"  {candidate}, {which}: {result['refused']}", markup=False)
        record["cases"].append({"op": case.op, "shape": case.label, "passes": results})
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {out}", markup=False)
    return refused


if __name__ == "__main__":
    raise SystemExit(1 if main(tyro.cli(Settings, description=__doc__)) else 0)
