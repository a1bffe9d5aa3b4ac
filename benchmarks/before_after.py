"""Times every op of this checkout beside that of another one, such as the commit before a change.

    git worktree add ../before COMMIT
    python -m benchmarks.before_after ../before

Two processes, one per checkout, hold the same compiled case and take turns, so that a change in the machine's load falls on both.
The ratio is before / after of the medians, above 1 where this checkout is faster. Both run the implementation that is chosen by
default. Recordings are made with the environment variables named in `benchmarks/kernels.py`.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Settings:
    """Settings of the run."""

    before: Annotated[Path, tyro.conf.Positional]
    """The other checkout."""
    shape: str = ""
    """Only cases whose op or label contains this text."""
    repeats: int = 15
    """Turns of each."""
    quick: bool = False
    """One small shape per op instead of the published ones."""
    out: Path = Path(__file__).parent / "results" / "before_after_cpu.json"
    """Path of the JSON."""


class Worker:
    """A process that runs the cases of one checkout; requests and answers are lines of JSON."""

    def __init__(self, checkout: Path, quick: bool):
        root = str(checkout.resolve())
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", *(["--quick"] if quick else [])]
        environment = {**os.environ, "PYTHONPATH": root}
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.labels: list[str] = self._answer()

    def ask(self, *request):
        """The answer to a request."""
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process in {self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)


def work(quick: bool) -> None:
    """Runs as a worker: ["compile", label, pass] makes a case ready, ["run"] gives the seconds of one call."""
    import time

    import jax

    from benchmarks import measure
    from benchmarks.cases import cases

    jax.config.update("jax_default_matmul_precision", "highest")
    known = {f"{case.op} {case.label}": case for case in cases(quick)}
    print(json.dumps(list(known)), flush=True)
    executable, arrays = None, ()
    for line in sys.stdin:
        kind, *rest = json.loads(line)
        if kind == "surroundings":
            answer = measure.surroundings()
        elif kind == "compile":
            case = known[rest[0]]
            arrays = jax.block_until_ready(case.inputs(jax.random.key(0)))
            executable, _, answer = measure.compiled(measure.passes(case.ours["default"], arrays)[rest[1]], arrays)
            jax.block_until_ready(executable(*arrays))
        else:
            assert executable is not None
            begin = time.perf_counter()
            jax.block_until_ready(executable(*arrays))
            answer = time.perf_counter() - begin
        print(json.dumps(answer), flush=True)


def main(settings: Settings) -> None:
    """Times the cases that both checkouts have, prints a line each and writes the JSON after every one."""
    workers = {"before": Worker(settings.before, settings.quick), "after": Worker(Path(__file__).parents[1], settings.quick)}
    labels = [label for label in workers["after"].labels if label in workers["before"].labels and settings.shape in label]
    record = {name: worker.ask("surroundings") for name, worker in workers.items()} | {
        "settings": {**asdict(settings), "before": settings.before.name, "out": settings.out.name},
        "cases": [],
    }
    draw = random.Random(0)
    for label in labels:
        for which in PASSES:
            seconds = {name: [] for name in workers}
            for worker in workers.values():
                worker.ask("compile", label, which)
            for _ in range(settings.repeats):
                for name in draw.sample(list(workers), 2):
                    seconds[name].append(workers[name].ask("run"))
            ratio = median(seconds["before"]) / median(seconds["after"])
            record["cases"].append({"case": label, "pass": which, "ratio": ratio, "seconds": seconds})
            best = min(seconds["before"]) / min(seconds["after"])
            print(f"{label:50} {which:16} {ratio:5.2f}  (of the minima {best:.2f})", flush=True)
            settings.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratios = sorted(case["ratio"] for case in record["cases"])
    print(f"{len(ratios)} cases, smallest ratio {ratios[0]:.2f}, median {median(ratios):.2f}")


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work("--quick" in sys.argv)
    else:
        main(tyro.cli(Settings, description=__doc__))
