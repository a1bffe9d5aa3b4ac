"""Holds every op and implementation, on the device at hand, to its definition in float64 on the CPU.

    python -m benchmarks.check_on_device --out check.json

Output, final state and all gradients in float32 at highest matmul precision, for mild gates, for every 17th gate violent and for
packed documents with padding; rows whose every gate is violent must be free of NaN. Exit code 1 if any is off. The test-suite asks
the same of the CPU; this asks it of devices that the tests cannot see.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from seqzoo.kernels.attention import attention, empty_cache
from seqzoo.kernels.convolution import short_convolution
from seqzoo.kernels.linear_attention import linear_attention
from seqzoo.kernels.linear_recurrence import linear_recurrence
from seqzoo.kernels.selective_scan import selective_scan

BOUND = 1e-5  # rms(difference) / max(rms(definition), rms(definition of the mild row)), float32
GATES = {"0": 0.0, "-20": -20.0, "-100": -100.0, "-1e4": -1e4, "-1e6": -1e6, "-inf": -math.inf}
LENGTH, BATCH = 203, 2


@dataclass(frozen=True)
class Settings:
    """Settings: where the findings go."""

    out: Path = Path("check_on_device.json")
    """JSON with the error of every quantity."""


class Op(NamedTuple):
    """An op under test: `call(arrays, segment_ids, implementation)` gives (output, float leaves of the final state)."""

    name: str
    implementations: tuple[str, ...]
    arrays: Callable  # log decay [b, t] -> {name: float64 numpy array}; ops without gates ignore it
    call: Callable
    gated: bool


def _normal(seed: int, *shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _recurrence(gate):
    factors = 1 + 0.1 * np.abs(_normal(0, BATCH, LENGTH, 24))
    return {"a": np.exp(_times(gate[..., None], factors)), "b": _normal(1, BATCH, LENGTH, 24), "initial": _normal(2, BATCH, 24)}


def _selective(gate):
    dt = -np.repeat(gate[..., None], 24, 2)  # with A[:, 0] = -1 the decay of the first state is the gate
    x = _normal(0, BATCH, LENGTH, 24) / np.where((dt > 1) & np.isfinite(dt), dt, 1.0)  # keeps what is written mild
    A = -np.repeat(np.arange(1.0, 5.0)[None], 24, 0)
    B, C = _normal(1, BATCH, LENGTH, 4), _normal(2, BATCH, LENGTH, 4)
    return {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": _normal(3, 24), "initial": _normal(4, BATCH, 24, 4)}


def _linear(per_channel, both_axes=False):
    def arrays(gate):
        tail = (4, 16) if per_channel else (4,)
        gates = gate.reshape(BATCH, LENGTH, *(1,) * len(tail))
        log_decay = _times(gates, 1 + 0.1 * np.abs(_normal(0, BATCH, LENGTH, *tail)))
        q, k = (_normal(seed, BATCH, LENGTH, 2, 16) for seed in (1, 2))
        v = _normal(3, BATCH, LENGTH, 4, 20)
        result = {"q": q, "k": k, "v": v, "log_decay": log_decay, "initial": _normal(4, BATCH, 4, 16, 20)}
        if both_axes:
            value_log_decay = _times(gate[..., None, None], 1 + 0.1 * np.abs(_normal(5, BATCH, LENGTH, 4, 20)))
            result |= {"value_log_decay": value_log_decay, "bonus": _normal(6, 4, 16)}
        return result

    return arrays


def _low_rank(per_channel):
    """A delta rule's: a and b of one direction and opposed, so that the state stays bounded."""

    def arrays(gate):
        result = _linear(per_channel)(gate)
        k = result["k"] / np.linalg.norm(result["k"], axis=-1, keepdims=True)
        return result | {"k": k, "a": -k, "b": (0.5 + 0.5 * np.abs(np.tanh(_normal(7, BATCH, LENGTH, 2, 1)))) * k}

    return arrays


def _pairs(gate):
    q, k, v = (_normal(seed, BATCH, LENGTH, heads, 16) for seed, heads in ((0, 4), (1, 2), (2, 2)))
    return {"q": q, "k": k, "v": v}


def _local(gate):
    return {
        "x": _normal(0, BATCH, LENGTH, 24),
        "weight": _normal(1, 4, 24),
        "bias": _normal(2, 24),
        "initial": _normal(3, BATCH, 3, 24),
    }


def _times(gate, factors):
    """gate * factors, with 0 and -inf exact."""
    with np.errstate(invalid="ignore"):
        return np.broadcast_to(np.where(np.isfinite(gate), gate * factors, gate), factors.shape).copy()


def _attend(**settings):
    def call(a, ids, implementation):
        cache = empty_cache(BATCH, LENGTH, 2, 16, 16, a["k"].dtype)
        o, last = attention(a["q"], a["k"], a["v"], initial_state=cache, segment_ids=ids, implementation=implementation, **settings)
        return o, last.keys, last.values

    return call


def _call_recurrence(a, ids, implementation):
    return linear_recurrence(a["a"], a["b"], initial_state=a["initial"], segment_ids=ids, implementation=implementation)


def _call_selective(a, ids, implementation):
    arrays = (a[name] for name in ("x", "dt", "A", "B", "C"))
    return selective_scan(*arrays, D=a["D"], initial_state=a["initial"], segment_ids=ids, implementation=implementation)


def _call_linear(a, ids, implementation):
    rest = {"log_decay": a["log_decay"], "initial_state": a["initial"], "segment_ids": ids}
    rest |= {name: a[name] for name in ("a", "b") if name in a}
    if "bonus" in a:
        rest |= {"value_log_decay": a["value_log_decay"], "bonus": a["bonus"], "read_before_write": True}
    return linear_attention(a["q"], a["k"], a["v"], implementation=implementation, **rest)


def _call_local(a, ids, implementation):
    rest = {"initial_state": a["initial"], "segment_ids": ids}
    return short_convolution(a["x"], a["weight"], a["bias"], implementation=implementation, **rest)


SCANS = ("reference", "recurrent", "chunkwise")
LINEAR_ATTENTION = ("reference", "recurrent", "chunkwise", "recurrent_forward_chunkwise_backward")
OPS = (
    Op("linear_recurrence", SCANS, _recurrence, _call_recurrence, True),
    Op("selective_scan", ("reference", "recurrent"), _selective, _call_selective, True),
    Op("linear_attention, decay per head", LINEAR_ATTENTION, _linear(False), _call_linear, True),
    Op("linear_attention, decay per channel", LINEAR_ATTENTION, _linear(True), _call_linear, True),
    Op(
        "linear_attention, read before write, decays of both axes",
        LINEAR_ATTENTION[:3],
        _linear(True, both_axes=True),
        _call_linear,
        True,
    ),
    Op("linear_attention, low rank, decay per head", LINEAR_ATTENTION, _low_rank(False), _call_linear, True),
    Op("linear_attention, low rank, decay per channel", LINEAR_ATTENTION, _low_rank(True), _call_linear, True),
    Op("attention, softmax", ("reference", "blockwise"), _pairs, _attend(), False),
    Op("attention, softmax, window 31", ("reference", "blockwise"), _pairs, _attend(window=31), False),
    Op("attention, sigmoid", ("reference", "blockwise"), _pairs, _attend(scores="sigmoid", bias=-3.0), False),
    Op("short_convolution", ("reference", "xla"), _local, _call_local, False),
)


def mild() -> np.ndarray:
    """Log decays [b, t] around -0.1."""
    return -0.2 * np.random.default_rng(7).uniform(size=(BATCH, LENGTH))


def rows(op: Op) -> dict[str, tuple[np.ndarray, np.ndarray | None, bool]]:
    """Name -> (log decay, segment ids, whether only NaN-freedom is asked)."""
    documents = np.zeros((BATCH, LENGTH), np.int32)
    for row, borders in enumerate(((0, 1, 3, 60, 64, 129, 190), (5, 69, 70, 133, 203))):
        for number, (begin, end) in enumerate(itertools.pairwise(borders)):
            documents[row, begin:end] = 1 + number % 2  # ids compare with neighbours only
    documents[:, 100:104] = 0  # interior padding; the first row's end and the second one's beginning are padding as well
    found = {"mild": (mild(), None, False), "packed": (mild(), documents, False)}
    if op.gated:
        for name, value in GATES.items():
            gate = mild()
            gate[:, ::17] = value
            found[f"every 17th {name}"] = (gate, None, False)
            found[f"every one {name}"] = (np.full((BATCH, LENGTH), value), None, True)
    return found


@functools.cache
def _differentiated(op: Op, implementation: str | None) -> Callable:
    """(arrays, segment ids) -> (gradients of a fixed scalar of all results, the results), jitted once for all rows."""

    def scalar(arrays, ids):
        results = op.call(arrays, ids, implementation)
        weights = [jnp.asarray(_normal(11 + i, *r.shape), r.dtype) for i, r in enumerate(results)]
        return sum(jnp.vdot(w, r) for w, r in zip(weights, results, strict=True)), results

    return jax.jit(jax.grad(scalar, has_aux=True))


def quantities(op: Op, arrays, ids, implementation) -> dict[str, np.ndarray]:
    """Output, final state and gradients, in the dtype of the arrays."""
    grads, results = _differentiated(op, implementation)(arrays, ids)
    named = {"output": results[0]} | {f"state{i}": r for i, r in enumerate(results[1:])}
    return {name: np.asarray(x, np.float64) for name, x in (named | {f"d {name}": g for name, g in grads.items()}).items()}


def definition(op: Op, arrays, ids) -> dict[str, np.ndarray]:
    """The reference in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return quantities(
            op, {k: jnp.asarray(v, jnp.float64) for k, v in arrays.items()}, None if ids is None else jnp.asarray(ids), "reference"
        )


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def check(op: Op) -> list[dict]:
    """The findings of one op: a record per row and implementation with the error of each quantity."""
    scale = definition(op, op.arrays(mild()), None)
    found = []
    for row, (gate, ids, only_finite) in rows(op).items():
        arrays = {name: x.astype(np.float32) for name, x in op.arrays(gate).items()}  # so that both see the same numbers
        wanted = None if only_finite else definition(op, arrays, ids)
        single = {name: jnp.asarray(x) for name, x in arrays.items()}
        for implementation in (*op.implementations, *((None,) if row == "mild" else ())):  # the default is one of them
            record = {"op": op.name, "row": row, "implementation": implementation or "default", "only_finite": only_finite}
            try:
                actual = quantities(op, single, None if ids is None else jnp.asarray(ids), implementation)
            except Exception as error:  # an error of one implementation must not hide the results of the others
                found.append(record | {"raised": repr(error)[:500], "passed": False})
                continue
            errors = {}
            for name, value in actual.items():
                if not np.isfinite(value).all():
                    errors[name] = math.inf
                elif only_finite:
                    errors[name] = 0.0
                else:
                    errors[name] = rms(value - wanted[name]) / max(rms(wanted[name]), rms(scale[name]), 1e-30)
            found.append(record | {"errors": errors, "passed": all(e <= BOUND for e in errors.values())})
    return found


def summary(record: dict) -> str:
    """The worst quantity of a record, in a table's cell."""
    if "errors" not in record:
        return f"FAILED {record['raised'][:40]}"
    worst = max(record["errors"], key=record["errors"].get)
    finite = "finite" if record["passed"] else "not finite"
    found = finite if record["only_finite"] else f"{record['errors'][worst]:.1e} {worst}"
    return found if record["passed"] else f"FAILED {found}"


def main(settings: Settings) -> int:
    """Checks every op, prints the worst of each row, writes all of it; returns the number of failures."""
    jax.config.update("jax_default_matmul_precision", "highest")
    console = Console(width=150)
    findings = []
    for op in OPS:
        findings += check(op)
        view = Table("row", *op.implementations, "default", title=op.name, title_justify="left")
        mine = [record for record in findings if record["op"] == op.name]
        for row in dict.fromkeys(record["row"] for record in mine):
            cells = {record["implementation"]: summary(record) for record in mine if record["row"] == row}
            view.add_row(row, *(cells.get(name, "") for name in (*op.implementations, "default")))
        console.print(view)
    failures = sum(not r["passed"] for r in findings)
    settings.out.write_text(
        json.dumps(measure.surroundings() | {"bound": BOUND, "findings": findings}, indent=1) + "\n", encoding="utf-8"
    )
    console.print(
        f"{len(findings)} checks on {jax.devices()[0].device_kind}, {failures} failed; written: {settings.out}", markup=False
    )
    return failures


if __name__ == "__main__":
    raise SystemExit(1 if main(tyro.cli(Settings, description=__doc__)) else 0)
