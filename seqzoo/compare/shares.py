"""The division of a comparison's runs among processes: which run a process takes next, and the static part of a shard."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from seqzoo.compare.summary import Run

UNEVEN = 1.25  # runs that share a compilation stay in one shard if no shard then has more than this times its even share


class Shard(NamedTuple):
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    def __str__(self):
        return f"{self.number}/{self.of}"


def in_order(runs: Sequence[Run], keys: dict[str, str], busy: Iterable[str], last: str | None) -> list[Run]:
    """The runs that a process may take, the best first.

    First those that share their programs with the process's `last` run; then those of programs of which no other process trains a
    run; then, from the end, those that other processes would reach later.

    Args:
      runs: that have no result yet.
      keys: the programs of each run, by name.
      busy: names of the runs that other processes train now; they are not in the list.
      last: the programs of the last run of this process; None before the first.
    """
    busy = set(busy)
    others = {keys[name] for name in busy if name in keys}
    free = [run for run in runs if run.name not in busy]
    own = [run for run in free if keys[run.name] == last]
    new = [run for run in free if keys[run.name] != last and keys[run.name] not in others]
    shared = [run for run in free if keys[run.name] != last and keys[run.name] in others]
    return [*own, *new, *reversed(shared)]


def shard_of(names: Sequence[str], unit: Callable[[str], str], whole: bool, shard: Shard) -> set[str]:
    """The names of the runs of a shard: the same in every process, whatever has been trained. Shards have equally many runs, or
    nearly.

    Args:
      names: of all runs, in order.
      unit: what a run should share a shard with: equal texts stay together where that balances.
      whole: whether equal texts stay together in any case.
      shard: which part.
    """
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(unit(name), []).append(name)
    parts: list[list[str]] = [[] for _ in range(shard.of)]
    for members in sorted(units.values(), key=len, reverse=True):
        min(parts, key=len).extend(members)
    if not whole and max(map(len, parts)) > UNEVEN * -(-len(names) // shard.of):
        row = [name for members in units.values() for name in members]
        cuts = [len(row) * number // shard.of for number in range(shard.of + 1)]
        parts = [row[start:end] for start, end in itertools.pairwise(cuts)]
    return set(parts[shard.number - 1])
