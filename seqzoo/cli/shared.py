"""What the commands share: how wrong words are told, and which config is meant."""

from pathlib import Path

import tyro
from rich.console import Console

from seqzoo import config
from seqzoo.specs import did_you_mean

QUICKSTART = Path("configs/quickstart.py")
NAMES = ("train", "resume", "eval", "inspect", "plot", "prepare", "generate")
FLAGS = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)

USAGE = """train.py [COMMAND | CONFIG.py] [--settings]

- train.py: train the quickstart comparison
- train.py CONFIG.py: train what the file's `config` describes
- train.py train [CONFIG.py]: the same, in full
- train.py [CONFIG.py] --dry-run: list what would be trained, with parameters, state bytes, steps and tokens; nothing is written
- train.py [CONFIG.py] --sweep optimizer.learning_rate=1e-3,3e-3 --sweep model.layers=gla,softmax: every combination, in one table
- train.py resume RUN [--mesh...]: go on with a run folder that was stopped, on other devices if need be; with any other settings
  too, where they change the numbers only with --changed
- train.py eval RUN [--mesh...] [--step N]: evaluate a run's latest checkpoint, or another, and print its evaluation sets
- train.py prepare SOURCE FOLDER [--settings]: tokenise files into shards that the task text reads; go on if that was stopped
- train.py generate RUN --prompt TEXT [--temperature...]: go on from a text with a run's latest checkpoint, and print it as it comes
- train.py inspect RUN | CONFIG.py [--settings]: what a run is and how it stands, also while it trains; the model by its parts
- train.py inspect RUN --no-imports, plot RUN... --no-imports: the same without importing the modules that a run's `imports` names
- train.py plot RUN... [--metric loss] [--x step] [--out FILE.png]: draw the curves of runs, and of all runs of a comparison

Several processes, on one machine or many that share the run folder, train one experiment: start the same command in each with
--distributed ADDRESS:PORT/COUNT/INDEX (where process 0 listens, how many there are, which one this is), or with
--distributed auto where the cluster tells. SIGTERM to any of them saves and stops all.

Any setting can be changed: --model.layers "mamba2, softmax(window=256, heads=2)" --optimizer.learning-rate 3e-3.
Below are those of the chosen config, with its values.
"""


class UsageError(Exception):
    """What the user gave does not fit; raised before anything is written."""


def checked(call):
    """`call()`, its ValueErrors turned into what the user gave wrong."""
    try:
        return call()
    except ValueError as error:
        raise UsageError(str(error)) from error


def fail(error: BaseException | str, code: int) -> int:
    Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    return code


def take_flag(flag: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of a flag, "--flag VALUE" or "--flag=VALUE", as often as it is given; and the other arguments."""
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
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"{command} needs a run folder: train.py {command} runs/NAME")
    return Path(arguments[0]), arguments[1:]


def choose_config(arguments: list[str]) -> tuple[config.Config, list[str]]:
    """The config that the first argument names, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        path = arguments[0]
        if not Path(path).exists() and not path.endswith(".py"):
            near = did_you_mean(path, NAMES)
            known = f"Commands: {', '.join(NAMES)}; a config file ends in .py"
            raise UsageError(f"{path!r} is no command and no config file.{near} {known}")
        if Path(path).is_dir():
            raise UsageError(f"{path} is a folder; wanted a command or a config file: resume {path}, or eval {path}?")
        return config.load_file(path), arguments[1:]
    if QUICKSTART.is_file():
        return config.load_file(QUICKSTART), arguments
    from seqzoo.cli import quickstart  # in the working directory there is no checkout

    return quickstart.config, arguments


def parse_settings(loaded: config.Config, arguments: list[str], prog: str = "train.py") -> config.Config:
    """The loaded config with the command line's settings in place of its own. SystemExit for --help and wrong settings."""
    chosen = tyro.cli(type(loaded), default=loaded, args=arguments, prog=prog, description=USAGE, config=FLAGS)
    if isinstance(chosen, config.Comparison):
        changed = config.difference(chosen.base, loaded.base)
        for path in sorted(chosen.varied):
            if path in changed:
                raise UsageError(f"{path} is an axis of this comparison, so one value for all would be lost; change it with --axes")
    return chosen
