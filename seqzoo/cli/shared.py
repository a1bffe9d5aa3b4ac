"""Parts that commands share: usage errors, flags, and the choice of a config."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from seqzoo import config
from seqzoo.cli.refusals import in_one_line
from seqzoo.config.base import last_refusal
from seqzoo.entry import program
from seqzoo.specs import did_you_mean

Result = TypeVar("Result")
Chosen = TypeVar("Chosen", config.Experiment, config.Comparison, config.Config)

NAMES = ("train", "resume", "compare", "eval", "inspect", "plot", "report", "prepare", "generate", "help")
FLAGS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)

USAGE = """train.py [COMMAND | CONFIG.py] [--settings]

- train.py: train the quickstart comparison
- train.py CONFIG.py: train the `config` of a file
- train.py train [CONFIG.py]: the same, in full
- train.py [CONFIG.py] --dry-run: list the runs with parameters, state bytes, steps and tokens; nothing is written
- train.py [CONFIG.py] --dry-run --estimate: also about how long they take, from a few timed steps of every distinct model
- train.py [CONFIG.py] --sweep optimizer.learning_rate=1e-3,3e-3 --sweep model.layers=gla,softmax: every combination, in one table;
  values in quotes or brackets are Python literals, as in --sweep "model.layers=gla,'mamba2, softmax'"
- train.py help [NAME]: names of mixers, channel mixers, tasks, update rules and schedules; the settings of one, with types, ranges
  and defaults
- train.py resume RUN [--mesh...]: continue a stopped run, on other devices if necessary; other settings may change too, and with
  --changed also settings that change the numbers; with --go-back also if its latest checkpoint or its metrics are gone
- train.py resume COMPARISON [--retry]: train the runs of a comparison that have no result yet; with --retry also those that failed
- train.py compare CONFIG.py | COMPARISON: the same as train, or as resume, for comparisons only. All three take, of a comparison:
  --jobs N: N processes train, each with its share of the cores
  --together N: N runs that differ only in learning rate, weight decay and seeds are trained at once, by one vectorised step; on an
  accelerator as many as its memory holds, on a CPU one
  --shard i/n: this call trains part i of n, i from 1 to n, in the folder that all parts share, run.folder/run.name: for the tasks
  of a cluster, sbatch --array=1-n, or for several machines
- train.py compare COMPARISON --continue-unfinished [--steps N]: continue the runs that are marked as still learning, to N steps, or
  to twice their steps
- train.py eval RUN [--test] [--mesh...] [--step N]: evaluate the latest checkpoint of a run, or checkpoint N, on its evaluation
  sets for validation, or with --test on its test sets
- train.py prepare SOURCE FOLDER [--settings]: tokenise files into shards for the task text, or continue a stopped call
- train.py generate RUN --prompt TEXT [--temperature...]: continue a text with the latest checkpoint of a run, and print it as it
  is generated
- train.py inspect RUN | CONFIG.py [--settings]: status and settings of a run, also while it trains, and the model by its parts
- train.py plot RUN... [--metric loss] [--x step] [--out FILE.png]: draw the curves of runs, and of all runs of a comparison
- train.py report FOLDER... [--out DIR]: comparisons and runs, finished or not, joined in one HTML page that opens offline, with
  table and figures, and the same in Markdown and PNG; needs the extra `report`
- train.py inspect RUN --no-imports, plot RUN... --no-imports, report FOLDER... --no-imports: the same without importing the modules
  in a run's `imports`

Several processes, on one machine or many that share the run folder, train one experiment: start the same command in each with
--distributed ADDRESS:PORT/COUNT/INDEX (address of process 0, number of processes, index of this one), or with
--distributed auto on a cluster that JAX knows. Each says for whom it waits, and ends if not all have come in 120 seconds,
or in those of --distributed-timeout SECONDS. SIGTERM to one of them saves and stops all.

--compilation-cache DIR keeps compiled programs in a folder for later calls. They are executed: anyone who can write there can run
code here.

Any setting can be changed: --model.layers "mamba2, softmax(window=256, heads=2)" --optimizer.learning-rate 3e-3.
Below are the settings of the chosen config, with its values.
"""


class UsageError(Exception):
    """A wrong argument, setting, config or folder; raised before anything is written."""


def checked(call: Callable[[], Result]) -> Result:
    """Returns `call()`; a ValueError becomes a UsageError."""
    try:
        return call()
    except ValueError as error:
        raise UsageError(str(error)) from error


def fail(error: BaseException | str, code: int) -> int:
    """Prints an error to standard error in one line, a line break in a name as \\n, and returns the exit code."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(error))
    Console(stderr=True).print(f"error: {shown}", markup=False, highlight=False, soft_wrap=True)
    return code


def take_flag(flag: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of a flag, "--flag VALUE" or "--flag=VALUE", which may be repeated; and the other arguments."""
    values, rest = [], []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else next(words, ""))
        else:
            rest.append(word)
    return values, rest


def take_run_folder(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The run folder that the first argument names, and the other arguments."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"{command} needs a run folder: {program()} {command} runs/NAME")
    return Path(arguments[0]), arguments[1:]


def choose_config(arguments: list[str]) -> tuple[config.Config, list[str]]:
    """The config that the first argument names, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        path = arguments[0]
        if not path.endswith(".py") and not Path(path).is_dir():
            near = did_you_mean(path, NAMES)
            known = f"Commands: {', '.join(NAMES)}; a config file ends in .py"
            raise UsageError(f"{path!r} is neither a command nor a config file.{near} {known}")
        if Path(path).is_dir():
            raise UsageError(f"{path} is a folder; wanted a command or a config file: resume {path}, or eval {path}?")
        return config.load_file(path), arguments[1:]
    from seqzoo.cli import quickstart

    return quickstart.config, arguments


def parse_arguments(kind: type[Result], arguments: list[str], prog: str, **more: Any) -> Result:
    """The settings of the command line as an object of `kind`.

    Raises:
      UsageError: a wrong setting, in one line. SystemExit: --help.
    """
    last_refusal.set(None)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=prog, config=FLAGS, **more)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        refusal = last_refusal.get()
        raise UsageError(in_one_line(said.getvalue(), arguments) if refusal is None else str(refusal)) from refusal


def parse_settings(loaded: Chosen, arguments: list[str], prog: str | None = None) -> Chosen:
    """The loaded config with the settings of the command line. Raises as `parse_arguments`."""
    described = USAGE.replace("train.py", program())
    chosen = parse_arguments(type(loaded), arguments, prog or program(), default=loaded, description=described)
    if isinstance(chosen, config.Comparison) and isinstance(loaded, config.Comparison):
        changed = config.difference(chosen.base, loaded.base)
        for path in sorted(chosen.varied):
            if path in changed:
                raise UsageError(f"{path} is an axis of this comparison, so one value for all would be lost; change it with --axes")
    return chosen
