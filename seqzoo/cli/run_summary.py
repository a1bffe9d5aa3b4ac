"""Status of a run from its folder alone: `train.py inspect RUN`, also while it trains. Nothing is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from seqzoo import config
from seqzoo.cli.model_summary import show
from seqzoo.compare.tables import print_line
from seqzoo.data.json_files import DamagedFile, read_json


def show_run(folder: str | Path, console: Console) -> None:
    """Prints a run: status, checkpoints, machine and versions, last metrics, settings and model.

    Raises:
      FileNotFoundError: no run.
    """
    from seqzoo.training import Checkpoints, load_config
    from seqzoo.training.run import data_record, metrics

    folder = Path(folder)
    experiment = load_config(folder)
    if isinstance(experiment, config.Comparison):
        inside = ", ".join(sorted(str(path.parent) for path in folder.glob("*/*/config.json")))
        raise FileNotFoundError(f"{folder} holds a comparison; wanted one of its runs: {inside or 'there is none yet'}")
    lines = metrics.read(folder / "metrics.jsonl")
    steps = Checkpoints(folder / "checkpoints").steps()
    summary = metrics.read_summary(folder)
    at = max([*steps, *(line["step"] for line in lines)], default=0)
    state = _ending(summary) if summary.get("finished") else summary.get("stopped", "not finished")
    print_line(console, f"{folder}: step {at} of {experiment.training.steps}, {state}")
    print_line(console, f"checkpoints: {', '.join(map(str, steps)) or 'none yet'}")
    for line in _provenance(folder / "environment.json"):
        print_line(console, line)
    for line in _last(lines):
        print_line(console, line)
    show(experiment, console, data_record.sizes(folder))


def _ending(summary: dict[str, Any]) -> str:
    still = ", still learning" if summary["still_learning"] else ""
    return f"finished ({summary['ended']}{still})"


def _last(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The last training line, and the evaluation of every evaluation set at the last step that has one."""
    training = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    for line in training[-1:]:
        yield f"training at step {line['step']}: {_numbers(line)}"
    for line in evaluations:
        if line["step"] == evaluations[-1]["step"]:
            yield f"evaluation at step {line['step']}, {line['eval_set']}: {_numbers(line)}"


def _numbers(line: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:.6g}" for key, value in line.items() if key != "step" and isinstance(value, int | float))


def _provenance(path: Path) -> Iterator[str]:
    """Start time, machine, versions and git revision of a run, and the number of resumptions; nothing without the file."""
    environment = read_json(path, absent={})
    if not environment:
        return
    try:
        yield from _describe(environment)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedFile(f"{path} is damaged: wanted what a run records of its machine, found no {error}") from None


def _describe(environment: dict[str, Any]) -> Iterator[str]:
    device, git, again = environment["device"], environment["git"], environment.get("resumed", [])
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    yield f"started {environment['time']}" + (f", resumed: {len(again)}, last {again[-1]['time']}" if again else "")
    yield f"{device['count']} x {device['kind']} ({device['platform']}), Python {environment['python']}, {versions}"
    if found := environment.get("init_from"):
        step = "" if found["step"] is None else f" at step {found['step']}"
        count = len(found["loaded"]) + len(found["not_loaded"])
        yield f"initial parameters from {found['path']}{step}: {len(found['loaded'])} of {count} loaded"
    yield f"git {git['revision']}{', with changes' if git['changed'] else ''}" if git else "no git revision"
