"""The command compare, and the flags of comparisons, which train and resume take too."""

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from seqzoo import config
from seqzoo.cli.shared import UsageError, checked, take_flag
from seqzoo.compare.runner import MOST_TOGETHER
from seqzoo.compare.shares import Shard
from seqzoo.entry import program

RETRY, JOBS, SHARD, CONTINUE, STEPS = "--retry", "--jobs", "--shard", "--continue-unfinished", "--steps"
TOGETHER = "--together"
MOST_JOBS = 1024


class Flags(NamedTuple):
    """Flags of comparisons: they change how runs are trained, not what."""

    retry: bool = False
    jobs: int = 1
    shard: Shard | None = None
    continue_unfinished: bool = False
    steps: int | None = None
    together: int | None = None


NO_FLAGS = Flags()


def take_flags(arguments: list[str]) -> tuple[Flags, list[str]]:
    """The flags of comparisons, and the other arguments."""
    jobs, rest = take_flag(JOBS, arguments)
    shards, rest = take_flag(SHARD, rest)
    together, rest = take_flag(TOGETHER, rest)
    more = CONTINUE in rest
    steps, rest = take_flag(STEPS, rest)
    if more:
        others, rest = take_flag("--training.steps", rest)
        steps += others
    flags = Flags(
        retry=RETRY in rest,
        jobs=_number(JOBS, jobs[-1], "processes", MOST_JOBS) if jobs else 1,
        shard=_shard(shards[-1]) if shards else None,
        continue_unfinished=more,
        steps=_number(STEPS, steps[-1], "steps", 2**31 - 1) if steps else None,
        together=_number(TOGETHER, together[-1], "runs", MOST_TOGETHER) if together else None,
    )
    return flags, [word for word in rest if word not in (RETRY, CONTINUE)]


def refuse_for_one_run(flags: Flags, what: str, command: bool) -> None:
    """Raises UsageError if flags of comparisons, or the command compare, are given one experiment."""
    if command:
        raise UsageError(f"{what}; compare is for comparisons, wanted train or resume")
    names = dict(zip(Flags._fields, (RETRY, JOBS, SHARD, CONTINUE, STEPS, TOGETHER), strict=True))
    for field, name in names.items():
        if getattr(flags, field) != getattr(NO_FLAGS, field):
            raise UsageError(f"{what}; {name} is for comparisons, wanted no {name}")


def refuse_useless(flags: Flags, new: bool) -> None:
    """Raises UsageError for flags that would do nothing, as those for earlier results of a new comparison."""
    if flags.steps is not None and not flags.continue_unfinished:
        raise UsageError(f"{STEPS} is the longer budget of {CONTINUE}; wanted both, or --training.steps for a new comparison")
    for name, given in ((RETRY, flags.retry), (CONTINUE, flags.continue_unfinished)):
        if new and given:
            raise UsageError(f"a new comparison has no earlier runs; wanted {name} with the folder of one")


def run(chosen: config.Comparison, folder: Path, flags: Flags, console: Console) -> int:
    """Trains a comparison in its folder, and returns the exit code."""
    from seqzoo import compare

    results = checked(lambda: compare.run(chosen, folder, console=console, **flags._asdict()))
    return 1 if any(each["problem"] for each in results.get("runs", ())) else 0


def compare(arguments: list[str], console: Console) -> int:
    """`compare CONFIG.py | FOLDER [flags]`: the same as train and resume, for comparisons."""
    from seqzoo.cli import runs

    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"compare needs a config file or a folder: {program()} compare configs/quickstart.py")
    return (runs.resume if Path(arguments[0]).is_dir() else runs.train)(arguments, console, only_comparisons=True)


def folder_of(chosen: config.Comparison) -> Path:
    """The folder that the shards of a comparison share: the first process makes it. Raises RunDirError for a bad path."""
    from seqzoo.training.run import run_dir

    folder = Path(chosen.base.run.folder) / chosen.name
    run_dir.check_path(folder)
    return folder


def _shard(word: str) -> Shard:
    index, _, count = word.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= MOST_JOBS:
        return Shard(int(index), int(count))
    raise UsageError(f"{SHARD} is {word!r}; wanted i/n with i from 1 to n, as of sbatch --array=1-n")


def _number(flag: str, word: str, what: str, most: int) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= most:
        raise UsageError(f"{flag} is {word!r}; wanted a number of {what} from 1 to {most}")
    return int(word)
