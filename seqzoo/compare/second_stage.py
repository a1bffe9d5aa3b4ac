"""Staged seeds: `Comparison.seeds_of_best` are trained only for the settings that each label's other seeds chose.

The runs of the second stage are a function of the comparison and of the results of the first, so every process finds the same ones.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seqzoo import config
from seqzoo.compare.summary import SEED, Run, summarise


class Later(NamedTuple):
    """A run of the second stage, to be made."""

    number: int  # of the first run with the same settings, in the first stage
    seed: int
    experiment: config.Experiment


def second_stage(comparison: config.Comparison, runs: Sequence[Run], experiments: Mapping[str, config.Experiment]) -> list[Later]:
    """The runs of the second stage that are known by now, in the order of the labels.

    A label has its runs as soon as all of its first stage have a result or have failed: those at the best settings by validation.

    Args:
      comparison: whose `seeds_of_best` are the seeds.
      runs: of the first stage, all of them, as they are now.
      experiments: of these runs, by name.
    """
    if not comparison.seeds_of_best:
        return []
    found = []
    for row in summarise(runs):
        label = [number for number, run in enumerate(runs) if run.label == row.label]
        if not all(runs[number].settled for number in label):
            continue
        chosen = _seedless(experiments[row.runs[0]])
        number = next(number for number in label if _seedless(experiments[runs[number].name]) == chosen)
        found += [Later(number, seed, config.replace(chosen, {SEED: seed})) for seed in comparison.seeds_of_best]
    return found


def _seedless(experiment: config.Experiment) -> config.Experiment:
    """The experiment with seed 0."""
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"seed": 0})})
