"""metrics.jsonl: one JSON object per line, appended as the run goes; and JSON files that are whole or absent."""

import json
import os
from pathlib import Path
from typing import Any


class Metrics:
    """The metrics of a run that stands at `step`: lines of later steps, which a resumed run will write again, are dropped."""

    def __init__(self, path: Path, step: int = 0):
        self.path = Path(path)
        lines = [line for line in read(self.path) if line["step"] <= step]
        self.evaluated = max((line["step"] for line in lines if line["kind"] == "eval"), default=-1)
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def append(self, *lines: dict[str, Any]) -> None:
        """Adds lines in one write, so that an evaluation is there with all its slices or not at all."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if there is no such file. A last line that a crash tore is left out."""
    path = Path(path)
    text = path.read_text() if path.exists() else ""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def write_text(path: Path, text: str) -> None:
    """Writes a file by way of a neighbour and a rename: readers see the old or the new one, never a half."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(Path(path), json.dumps(value, indent=2) + "\n")
