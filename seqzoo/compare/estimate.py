"""Estimate of a comparison's time: every distinct program is compiled, and a few steps and two evaluations of it are timed."""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from seqzoo import config
from seqzoo.compare.grid import group_by_label
from seqzoo.compare.tables import clock, new_table, print_line, print_table
from seqzoo.training.hyperparameters import shared_key

STEPS = 5  # before each of the two evaluations; the compilation is in the first ones, the second ones are timed


class Timing(NamedTuple):
    """Seconds of the parts of a run."""

    start: float  # compilation of all, start and first checkpoint: once for runs that share programs
    step: float
    evaluation: float

    def run(self, experiment: config.Experiment) -> float:
        """Seconds of a run to its last step, without the start."""
        training = experiment.training
        return training.steps * self.step + math.ceil(training.steps / training.eval_every) * self.evaluation


def time_steps(experiment: config.Experiment) -> Timing:
    """Trains an experiment for a few steps in a temporary folder, and tells how long its parts take."""
    from seqzoo import training
    from seqzoo.training.run import metrics

    few = {"training.stop_after_steps": 2 * STEPS, "training.eval_every": STEPS, "training.log_every": STEPS}
    few |= {"training.steps": max(experiment.training.steps, 2 * STEPS + 1), "training.patience": None, "training.stop_above": None}
    few |= {"training.min_gain": config.Training().min_gain, "training.checkpoint_every": 2 * STEPS, "run.log": ()}
    with tempfile.TemporaryDirectory() as folder:
        summary = training.train(config.replace(experiment, few), Path(folder) / "run", console=Console(quiet=True))
        lines = metrics.read(Path(folder) / "run" / metrics.METRICS)
    at = {(line["kind"], line["step"]): line["seconds"] for line in lines}
    step = max(0.0, at["train", 2 * STEPS] - at["eval", STEPS]) / STEPS
    evaluation = max(0.0, at["eval", 2 * STEPS] - at["train", 2 * STEPS])
    return Timing(max(0.0, sum(summary["seconds"].values()) - 2 * STEPS * step - 2 * evaluation), step, evaluation)


def show_estimate(chosen: config.Config, console: Console) -> None:
    """Prints about how long the runs of each label take in one process on this machine, and all."""
    later = len(chosen.seeds_of_best) if isinstance(chosen, config.Comparison) else 0
    groups = group_by_label(chosen)
    keys = list(dict.fromkeys(shared_key(each) for experiments in groups.values() for each in experiments))
    timings: dict[str, Timing] = {}
    table = new_table("About how long, in one process")
    table.add_column("", overflow="fold")
    for name in ("runs", "step", "evaluation", "one run", "all"):
        table.add_column(name, justify="right", no_wrap=True)
    total = 0.0
    for label, experiments in groups.items():
        started, runs = 0.0, []
        for experiment in experiments:
            key = shared_key(experiment)
            if key not in timings:
                print_line(console, f"timing {len(timings) + 1} of {len(keys)}: {label}")
                timings[key] = time_steps(experiment)
                started += timings[key].start
            runs.append(timings[key].run(experiment))
        mean = sum(runs) / len(runs)
        seconds = started + sum(runs) + later * mean
        total += seconds
        first = timings[shared_key(experiments[0])]
        cells = (f"{len(runs) + later}", f"{first.step * 1e3:.3g} ms", f"{first.evaluation:.2g} s", clock(mean), clock(seconds))
        table.add_row(label, *cells)
    print_table(console, table)
    print_line(console, f"About {clock(total)} in all, if no run stops early and nothing else uses this machine.")
