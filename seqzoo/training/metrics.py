"""metrics.jsonl: one JSON object per line, appended as the run goes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqzoo.data.atomic_io import write_errors, write_text


class Metrics:
    """The metrics of a run that stands at `step`: lines of later steps, which a resumed run will write again, are dropped.

    So is an evaluation that lacks one of `slices`: a disk that was full in its middle took only the first lines.
    """

    def __init__(self, path: Path, step: int = 0, slices: Iterable[str] = ()):
        self.path = Path(path)
        lines = [line for line in read(self.path) if line["step"] <= step]
        seen: dict[int, set[str]] = {}
        for line in lines:
            if line["kind"] == "eval":
                seen.setdefault(line["step"], set()).add(line.get("slice"))
        whole = {at for at, names in seen.items() if names >= set(slices)}
        lines = [line for line in lines if line["kind"] != "eval" or line["step"] in whole]
        self.evaluated = max(whole, default=-1)
        self.seconds = max((line.get("seconds", 0.0) for line in lines), default=0.0)  # how long the run had taken at the last line
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, *lines: dict[str, Any]) -> None:
        """Adds lines in one write, so that a killed process leaves an evaluation with all its slices or not at all."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        with write_errors(self.path), self.path.open("a") as file:
            file.write(text)


def flat(numbers: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dicts in dicts as one: {"gradient_norms": {"layers": {"0": {"mixer": 1.0}}}} has "gradient_norms/layers/0/mixer"."""
    found = {}
    for name, value in numbers.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if there is no such file. A last line that a crash tore is left out."""
    path = Path(path)
    text = path.read_text() if path.exists() else ""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
