"""Times ops with each workaround of kernels/common/xla_cpu.py beside the same ops with the plain operation in its place.

    python -m benchmarks.xla_cpu

A ratio is plain / workaround, of the medians: above 1 the workaround pays. A workaround that pays in no case should be deleted; run
this again for every new version of JAX. Recordings are made with the environment variables named in `benchmarks/kernels.py`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from jax import lax

from benchmarks import measure
from benchmarks.cases import cases
from seqzoo.kernels.common import xla_cpu

PLAIN: dict[str, Callable] = {
    "matmul": jnp.matmul,
    "_product": lambda spec, x, y, precision: jnp.einsum(spec, x, y, precision=precision, preferred_element_type=x.dtype),
    "sum_keepdims": lambda x, axis: jnp.sum(x, axis=axis, keepdims=True),
    "sum_in_loop": lambda x, ones: jnp.sum(x, axis=1),
    "cumsum": lambda x: jnp.cumsum(x, axis=0),
    "scan": lax.scan,
    "materialise": lambda tree: tree,
    "broadcast": jnp.broadcast_to,
}


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    repeats: Annotated[int, tyro.conf.arg(metavar="N>=7")] = 15
    """Timed rounds."""
    shape: str = ""
    """Only cases whose op or label contains this text."""
    out: Path | None = None
    """Path of the JSON; default benchmarks/results/xla_cpu_jax-VERSION.json."""


def projection(b: int, t: int, d: int) -> tuple[str, Callable, tuple]:
    """A gated MLP as the blocks of a model have it: three projections."""
    key = iter(jax.random.split(jax.random.key(0), 4))
    weights = [jax.random.normal(next(key), shape) / d**0.5 for shape in ((d, 2 * d), (d, 2 * d), (2 * d, d))]

    def mlp(x, gate, up, down):
        return xla_cpu.matmul(jax.nn.silu(xla_cpu.matmul(x, gate)) * xla_cpu.matmul(x, up), down)

    return f"gated MLP B{b} T{t} D{d}", mlp, (jax.random.normal(next(key), (b, t, d)), *weights)


def timed() -> list[tuple[str, Callable, tuple]]:
    """(label, function, arrays) of all cases: projections, linear attention token by token and in chunks, selective scans."""
    chosen = [projection(8, 256, 128), projection(2, 2048, 256)]
    for case in cases(quick=False):
        if case.op == "linear_attention" and "K64" in case.label:
            arrays = case.inputs(jax.random.key(0))
            chosen += [(f"{case.label} {name}", case.ours[name], arrays) for name in ("recurrent", "chunkwise")]
        elif case.op == "selective_scan":
            chosen.append((case.label, case.ours["default"], case.inputs(jax.random.key(0))))
    return chosen


def main(settings: Settings) -> None:
    """Times every case with every workaround that changes its program, prints a line each and writes the JSON after every case."""
    assert jax.default_backend() == "cpu", "these workarounds are for CPUs: set JAX_PLATFORMS=cpu"
    out = settings.out or measure.ROOT / "benchmarks" / "results" / f"xla_cpu_jax-{jax.__version__}.json"
    record = measure.surroundings() | {"settings": asdict(settings) | {"out": out.name}, "ratios": []}
    for label, function, arrays in timed():
        if settings.shape not in label:
            continue
        program = lambda function=function, arrays=arrays: measure.passes(function, arrays)["forward+backward"].lower(*arrays)
        lowered = {"with all": program()}
        for name, plain in PLAIN.items():
            with mock.patch.object(xla_cpu, name, plain):
                jax.clear_caches()  # a custom gradient that was traced before keeps its workaround
                lowered[name] = program()
        text = lowered["with all"].as_text()
        executables = {name: it.compile() for name, it in lowered.items() if name == "with all" or it.as_text() != text}
        samples = measure.interleaved(executables, arrays, settings.repeats)
        for name in executables:
            if name != "with all":
                ratio = median(samples[name]) / median(samples["with all"])
                best = min(samples[name]) / min(samples["with all"])
                record["ratios"].append({"case": label, "workaround": name, "ratio": ratio, "of_minima": best})
                print(f"{label:60} {name:14} {ratio:5.2f}  (of the minima {best:.2f})", flush=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
